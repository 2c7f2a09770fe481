"""The wire forms of values, and the epochs they count from."""

from libc.stdint cimport int64_t

cdef enum Kind:
    BOOL
    INT2
    INT4
    INT8
    FLOAT4
    FLOAT8
    NUMERIC_DOUBLE
    NUMERIC_FIXED
    NUMERIC_128
    NUMERIC_WIRE
    INSTANT
    WALL
    DATE
    UUID
    TEXT
    BYTES
    JSONB

# Between PostgreSQL's epoch, 2000-01-01, and Unix's.
cdef enum:
    EPOCH_DAYS = 10957
cdef extern from *:
    """
    #define PGTICK_EPOCH_US INT64_C(946684800000000)
    """
    const int64_t EPOCH_US "PGTICK_EPOCH_US"
