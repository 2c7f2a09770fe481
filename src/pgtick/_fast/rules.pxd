"""What a value can break, and what the encoder knows of a column."""

from libc.stdint cimport int64_t

from pgtick._fast.wire cimport Buffer


cdef enum Broken:
    OK = 0
    IS_NULL
    NOT_NUMBER
    NOT_FINITE
    NOT_POSITIVE
    NEGATIVE
    NUMERIC_RANGE
    NOT_INT
    INT2_RANGE
    INT4_RANGE
    INT8_RANGE
    FLOAT4_RANGE
    NOT_FLOAT
    NOT_STR
    HAS_NUL
    NOT_UNICODE
    NOT_ALLOWED
    NOT_TIME
    NAIVE
    OUT_OF_WINDOW
    NOT_BOOL
    NOT_DATE
    NOT_UUID
    NOT_BYTES
    NOT_JSON
    MISSING
    TOO_LONG


cdef struct Clock:
    int64_t now  # µs since 2000
    int64_t multiply  # an integer time to µs; 0: no unit named
    int64_t divide
    int64_t day  # of the row's time column, since 1970; 0: not seen yet


ctypedef int (*Put)(Buffer *out, Plan *plan, object value, Clock *clock) except -1


cdef struct Plan:
    Put put
    bint nullable
    bint content_key
    bint is_text
    bint is_time
    int sign_rule  # 0 none, 1 "> 0", 2 ">= 0"
    int scale  # the scale that the last float of this column had: where the search for the next begins
    int64_t max_ahead  # µs
    void *allowed  # borrowed from the encoder's columns: the tuple of allowed texts, or NULL


cdef inline int sign_broken(int rule, bint negative, bint zero) noexcept nogil:
    if rule == 1 and (negative or zero):
        return NOT_POSITIVE
    if rule == 2 and negative and not zero:
        return NEGATIVE
    return OK


cdef object refusal(str table, Py_ssize_t index, object column, object value, int broken)
