# What a value can break, and what the encoder knows of a column.

cdef enum Broken:
    OK = 0
    IS_NULL
    NOT_NUMBER
    NOT_FINITE
    NOT_POSITIVE
    NEGATIVE
    NUMERIC_RANGE
    NOT_INT
    INT4_RANGE
    INT8_RANGE
    NOT_FLOAT
    NOT_STR
    HAS_NUL
    NOT_UNICODE
    NOT_ALLOWED
    NOT_TIME
    NAIVE
    OUT_OF_WINDOW
    NOT_BOOL
    MISSING
    TOO_LONG

# The words are those of models.py; the two that depend on the column are made in _refuse.
cdef tuple _RULES = (
    "",
    "must not be NULL",
    "must be a number: float, Decimal, int, or decimal text",
    "must be finite",
    "must be > 0",
    "must be >= 0",
    "must fit numeric",
    "must be an int",
    "must fit int4",
    "must fit int8",
    "must be a float",
    "must be a str",
    "must not contain NUL",
    "must be valid Unicode",
    "",
    "must be an aware datetime, or an int with its time_unit named",
    "must be aware: a naive datetime would be read in the machine's zone",
    "",
    "must be a bool",
    "must be an attribute of the row",
    "must be shorter than 1 GB",
)

cdef enum Kind:
    INT4
    INT8
    FLOAT8
    NUMERIC
    TEXT
    BOOL
    TIMESTAMPTZ

cdef dict _KINDS = {
    "int4": INT4,
    "int8": INT8,
    "float8": FLOAT8,
    "numeric": NUMERIC,
    "text": TEXT,
    "bool": BOOL,
    "timestamptz": TIMESTAMPTZ,
}

cdef struct Plan:
    Kind kind
    bint nullable
    bint content_key
    bint is_time
    int sign_rule  # 0 none, 1 "> 0", 2 ">= 0"
    int scale  # the scale the last float of this column had: where the search for the next one begins
    int64_t max_ahead

cdef struct Clock:
    int64_t now  # µs since 2000
    int64_t multiply  # an integer time to µs; 0: no unit named
    int64_t divide

cdef dict _UNITS = {"s": (1000000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}

cdef object _UTC = _timezone.utc
cdef object _EPOCH = _datetime(2000, 1, 1, tzinfo=_timezone.utc)
cdef object _MICROSECOND = _timedelta(microseconds=1)
cdef int64_t _EPOCH_UNIX = 946684800000000
cdef int64_t _EARLIEST = (_FIRST_INSTANT - _EPOCH) // _MICROSECOND
cdef int64_t _DAY = 86400000000
cdef int64_t _EPOCH_DAY = 10957
cdef bytes _HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes _TRAILER = b"\xff\xff"
# 10^131072 is the first number that numeric cannot hold; it has this many bits.
cdef int _MAX_BITS = 435412

cdef double[23] _POWERS
cdef int _i
for _i in range(23):
    _POWERS[_i] = float(f"1e{_i}")
