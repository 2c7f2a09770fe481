"""Rows to PostgreSQL's COPY BINARY: one growing C buffer, no object per row.

The promise: the bytes of a number are the bytes ``numeric_send('...'::numeric)`` gives for its decimal text.
A field is encoded, or a rule is broken: the rule travels as a small int, so that a bad row costs no exception;
its bytes are dropped and the rows around it stay. Whatever else is raised (no memory, a row's own property)
passes through; the encoder keeps no state of a batch, so it can be used again at once.

One module of more than 400 lines: the parts share one inlined buffer, and a call across modules per field costs
more than the field.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy, memmove
cimport cpython.datetime as dt

import time
from datetime import datetime as _datetime, timedelta as _timedelta, timezone as _timezone
from decimal import Decimal as _Decimal

from pgtick.errors import RowError
from pgtick.models import EARLIEST

cdef extern from *:
    """
    #include <charconv>
    #include <structmember.h>

    static inline Py_ssize_t pgtick_shortest(double x, char *out, Py_ssize_t room) {
        return std::to_chars(out, out + room, x, std::chars_format::scientific).ptr - out;
    }

    /* The offset of a slot that holds an object, or -1 where the attribute is anything else. */
    static inline Py_ssize_t pgtick_slot(PyObject *cls, PyObject *descriptor) {
        PyTypeObject *type = (PyTypeObject *)cls;
        if (type->tp_getattro != PyObject_GenericGetAttr || Py_TYPE(descriptor) != &PyMemberDescr_Type)
            return -1;
        PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        if (member->type != 16 /* Py_T_OBJECT_EX */ || (member->flags & ~1 /* Py_READONLY */) != 0)
            return -1;
        return member->offset;
    }

    static inline PyObject *pgtick_type(PyObject *object) {
        return (PyObject *)Py_TYPE(object);
    }
    """
    Py_ssize_t pgtick_shortest(double x, char *out, Py_ssize_t room) noexcept
    Py_ssize_t pgtick_slot(PyObject *cls, PyObject *descriptor) noexcept
    PyObject *pgtick_type(object) noexcept

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyUnicode_Compare(object left, object right) except? -1
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    bint PyUnicode_Check(object) noexcept
    bint PyBytes_Check(object) noexcept
    bint PyFloat_Check(object) noexcept
    bint PyLong_Check(object) noexcept
    bint PyBool_Check(object) noexcept
    bint PyIndex_Check(object) noexcept
    bint PyTuple_Check(object) noexcept
    bint PyDict_Check(object) noexcept
    object PyNumber_Index(object)
    double PyFloat_AS_DOUBLE(object) noexcept
    PyObject *PyDict_GetItemWithError(object, object) except? NULL

dt.import_datetime()

# ---------------------------------------------------------------- what a value can break

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
cdef int64_t _EARLIEST = (EARLIEST - _EPOCH) // _MICROSECOND
cdef int64_t _DAY = 86400000000
cdef int64_t _EPOCH_DAY = 10957
cdef bytes _HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes _TRAILER = b"\xff\xff"
# 10^131072 is the first number that numeric cannot hold; it has this many bits.
cdef int _MAX_BITS = 435412

cdef double[23] _POWERS
cdef uint64_t[5] _TENS
cdef int _i
for _i in range(23):
    _POWERS[_i] = float(f"1e{_i}")
for _i in range(5):
    _TENS[_i] = int("1" + "0" * _i)

# ---------------------------------------------------------------- XXH64

cdef uint64_t P1 = 0x9E3779B185EBCA87
cdef uint64_t P2 = 0xC2B2AE3D27D4EB4F
cdef uint64_t P3 = 0x165667B19E3779F9
cdef uint64_t P4 = 0x85EBCA77C2B2AE63
cdef uint64_t P5 = 0x27D4EB2F165667C5


cdef inline uint64_t _rotate(uint64_t x, int n) noexcept nogil:
    return (x << n) | (x >> (64 - n))


cdef inline uint32_t _read32(const uint8_t *p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline uint64_t _read64(const uint8_t *p) noexcept nogil:
    return <uint64_t>_read32(p) | <uint64_t>_read32(p + 4) << 32


cdef inline uint64_t _round(uint64_t lane, uint64_t word) noexcept nogil:
    return _rotate(lane + word * P2, 31) * P1


cdef uint64_t _xxh64(const uint8_t *p, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef uint64_t h, a, b, c, d
    if n >= 32:
        a = P1 + P2
        b = P2
        c = 0
        d = 0 - P1
        while end - p >= 32:
            a = _round(a, _read64(p))
            b = _round(b, _read64(p + 8))
            c = _round(c, _read64(p + 16))
            d = _round(d, _read64(p + 24))
            p += 32
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        h = (h ^ _round(0, a)) * P1 + P4
        h = (h ^ _round(0, b)) * P1 + P4
        h = (h ^ _round(0, c)) * P1 + P4
        h = (h ^ _round(0, d)) * P1 + P4
    else:
        h = P5
    h += <uint64_t>n
    while end - p >= 8:
        h = _rotate(h ^ _round(0, _read64(p)), 27) * P1 + P4
        p += 8
    if end - p >= 4:
        h = _rotate(h ^ <uint64_t>_read32(p) * P1, 23) * P2 + P3
        p += 4
    while p < end:
        h = _rotate(h ^ <uint64_t>p[0] * P5, 11) * P1
        p += 1
    h = (h ^ (h >> 33)) * P2
    h = (h ^ (h >> 29)) * P3
    return h ^ (h >> 32)


cdef inline int64_t _content_number(uint64_t h) noexcept nogil:
    cdef int64_t number = -<int64_t>(h >> 1)
    return number if number else -1


def content_number(data: bytes) -> int:
    """Return the negative 63-bit number that stands for the content."""
    return _content_number(_xxh64(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)))

# ---------------------------------------------------------------- the buffer


cdef inline void _put16(char *p, int value) noexcept nogil:
    p[0] = <char>(value >> 8)
    p[1] = <char>value


cdef inline void _put32(char *p, uint32_t value) noexcept nogil:
    p[0] = <char>(value >> 24)
    p[1] = <char>(value >> 16)
    p[2] = <char>(value >> 8)
    p[3] = <char>value


cdef inline void _put64(char *p, uint64_t value) noexcept nogil:
    _put32(p, <uint32_t>(value >> 32))
    _put32(p + 4, <uint32_t>value)


cdef class EncodedBatch:
    """The encoded rows of one batch, and what was refused of it."""

    cdef char *data
    cdef Py_ssize_t size
    cdef Py_ssize_t room
    cdef Py_ssize_t *starts  # n + 1 offsets
    cdef Py_ssize_t *origins  # the rows' indices in what the caller handed over
    cdef Py_ssize_t n
    cdef Py_ssize_t rows_room
    cdef readonly list errors
    cdef readonly set days

    def __cinit__(self):
        self.errors = []
        self.days = set()
        self._grow_rows()
        self.starts[0] = 0

    def __dealloc__(self):
        PyMem_Free(self.data)
        PyMem_Free(self.starts)
        PyMem_Free(self.origins)

    cdef int _grow(self, Py_ssize_t needed) except -1:
        cdef Py_ssize_t room = max(self.room * 2, self.size + needed, 16384)
        cdef char *data = <char *>PyMem_Realloc(self.data, room)
        if data == NULL:
            raise MemoryError
        self.data = data
        self.room = room
        return 0

    cdef int _grow_rows(self) except -1:
        cdef Py_ssize_t room = max(self.rows_room * 2, 256)
        cdef Py_ssize_t *starts = <Py_ssize_t *>PyMem_Realloc(self.starts, (room + 1) * sizeof(Py_ssize_t))
        if starts == NULL:
            raise MemoryError
        self.starts = starts
        cdef Py_ssize_t *origins = <Py_ssize_t *>PyMem_Realloc(self.origins, room * sizeof(Py_ssize_t))
        if origins == NULL:
            raise MemoryError
        self.origins = origins
        self.rows_room = room
        return 0

    cdef inline int reserve(self, Py_ssize_t needed) except -1:
        if self.room - self.size < needed:
            self._grow(needed)
        return 0

    cdef inline int add_row(self, Py_ssize_t origin) except -1:
        if self.n == self.rows_room:
            self._grow_rows()
        self.origins[self.n] = origin
        self.n += 1
        self.starts[self.n] = self.size
        return 0

    @property
    def n_rows(self) -> int:
        return self.n

    @property
    def n_bytes(self) -> int:
        """The length of the whole stream, with its header and trailer."""
        return self.size + 21

    @property
    def indices(self) -> list[int]:
        """The original index of each encoded row."""
        cdef Py_ssize_t i
        return [self.origins[i] for i in range(self.n)]

    def chunks(self, start: int = 0, stop: int | None = None, size: int = 65536):
        """Yield a complete COPY BINARY stream of the rows start..stop, in pieces of about ``size`` bytes."""
        cdef Py_ssize_t first = start
        cdef Py_ssize_t last = self.n if stop is None or stop > self.n else stop
        cdef Py_ssize_t step = size
        if first < 0 or last < 0 or step < 1:
            raise ValueError(f"start {start}, stop {stop}, size {size}: none may be negative, size not 0")
        first = min(first, last)
        cdef Py_ssize_t at = self.starts[first]
        cdef Py_ssize_t end = self.starts[last]
        head = _HEADER
        while end - at > step:
            yield head + PyBytes_FromStringAndSize(self.data + at, step)
            head = b""
            at += step
        yield head + PyBytes_FromStringAndSize(self.data + at, end - at) + _TRAILER

# ---------------------------------------------------------------- numbers


cdef inline int _sign_broken(int rule, bint negative, bint zero) noexcept nogil:
    if rule == 1 and (negative or zero):
        return NOT_POSITIVE
    if rule == 2 and negative and not zero:
        return NEGATIVE
    return OK


cdef inline void _numeric_head(char *p, int n, int weight, bint negative, int scale) noexcept nogil:
    _put32(p, 8 + 2 * n)
    _put16(p + 4, n)
    _put16(p + 6, weight)
    _put16(p + 8, 0x4000 if negative else 0)
    _put16(p + 10, scale)


cdef inline int _put_numeric(
    EncodedBatch out, Plan *plan, bint negative, uint64_t digits, int64_t exponent, int64_t scale
) except -1:
    """Write digits x 10^exponent, shown with ``scale`` decimals."""
    cdef int[6] groups
    cdef int n = 0, skip = 0, i, r, broken
    cdef int64_t low, weight
    cdef uint64_t unit
    cdef char *p
    broken = _sign_broken(plan.sign_rule, negative, digits == 0)
    if broken:
        return broken
    if scale > 16383:
        return NUMERIC_RANGE
    out.reserve(32)
    p = out.data + out.size
    if digits == 0:
        _numeric_head(p, 0, 0, False, <int>scale)
        out.size += 12
        return OK
    r = <int>(exponent & 3)
    low = exponent >> 2  # the power of 10000 of the lowest group
    unit = _TENS[4 - r]
    groups[0] = <int>(digits % unit * _TENS[r])
    digits //= unit
    n = 1
    while digits:
        groups[n] = <int>(digits % 10000)
        digits //= 10000
        n += 1
    weight = low + n - 1
    if weight > 32767:
        return NUMERIC_RANGE
    while groups[skip] == 0:
        skip += 1
    _numeric_head(p, n - skip, <int>weight, negative, <int>scale)
    p += 12
    for i in range(n - 1, skip - 1, -1):
        _put16(p, groups[i])
        p += 2
    out.size += 12 + 2 * (n - skip)
    return OK


cdef int _put_long_numeric(
    EncodedBatch out, Plan *plan, bint negative, const char *text, Py_ssize_t n, int64_t exponent, int64_t scale
) except -1:
    """Write the n digits at text (the first is not 0, a point among them is skipped) x 10^exponent."""
    cdef int64_t top = exponent + n - 1, weight = top >> 2
    cdef int place = <int>(top & 3), group = 0, broken
    cdef Py_ssize_t count = 0
    cdef char *p
    broken = _sign_broken(plan.sign_rule, negative, False)
    if broken:
        return broken
    if scale > 16383 or weight > 32767:
        return NUMERIC_RANGE
    out.reserve(12 + n // 2 + 8)
    p = out.data + out.size + 12
    while n:
        if text[0] != c".":
            group = group * 10 + (text[0] - c"0")
            n -= 1
            if n == 0:
                while place:
                    group *= 10
                    place -= 1
            if place == 0:
                _put16(p + 2 * count, group)
                count += 1
                group = 0
                place = 3
            else:
                place -= 1
        text += 1
    while p[2 * count - 2] == 0 and p[2 * count - 1] == 0:
        count -= 1
    _numeric_head(out.data + out.size, <int>count, <int>weight, negative, <int>scale)
    out.size += 12 + 2 * count
    return OK


cdef bint _is_word(const char *text, Py_ssize_t n, bytes word) noexcept:
    cdef Py_ssize_t i
    if n != PyBytes_GET_SIZE(word):
        return False
    for i in range(n):
        if (text[i] | 32) != PyBytes_AS_STRING(word)[i]:
            return False
    return True


cdef int _not_decimal(const char *text, Py_ssize_t n) noexcept:
    """Say which rule a text breaks that is no decimal number."""
    if n and (text[0] == c"-" or text[0] == c"+"):
        text += 1
        n -= 1
    if (
        _is_word(text, n, b"nan")
        or _is_word(text, n, b"snan")
        or _is_word(text, n, b"inf")
        or _is_word(text, n, b"infinity")
    ):
        return NOT_FINITE
    return NOT_NUMBER


cdef int _text_to_numeric(EncodedBatch out, Plan *plan, const char *text, Py_ssize_t n) except -1:
    cdef const char *p = text
    cdef const char *end = text + n
    cdef const char *first = NULL
    cdef bint negative = False, point = False, seen = False, minus = False
    cdef uint64_t digits = 0
    cdef Py_ssize_t count = 0
    cdef int64_t decimals = 0, exponent = 0, scale
    if p < end and (p[0] == c"-" or p[0] == c"+"):
        negative = p[0] == c"-"
        p += 1
    while p < end:
        if c"0" <= p[0] <= c"9":
            seen = True
            decimals += point
            if count or p[0] != c"0":
                if count == 0:
                    first = p
                count += 1
                if count <= 19:
                    digits = digits * 10 + <uint64_t>(p[0] - c"0")
        elif p[0] == c"." and not point:
            point = True
        else:
            break
        p += 1
    if not seen:
        return _not_decimal(text, n)
    if p < end:
        if p[0] != c"e" and p[0] != c"E":
            return NOT_NUMBER
        p += 1
        if p < end and (p[0] == c"-" or p[0] == c"+"):
            minus = p[0] == c"-"
            p += 1
        if p == end:
            return NOT_NUMBER
        while p < end:
            if not c"0" <= p[0] <= c"9":
                return NOT_NUMBER
            # The server's own bound, INT_MAX / 2; held there, so that the rest is still checked.
            if exponent <= 1073741823:
                exponent = exponent * 10 + (p[0] - c"0")
            p += 1
        if exponent > 1073741823:
            return NUMERIC_RANGE
        if minus:
            exponent = -exponent
    scale = decimals - exponent
    exponent = -scale
    if scale < 0:
        scale = 0
    if count <= 19:
        return _put_numeric(out, plan, negative, digits, exponent, scale)
    return _put_long_numeric(out, plan, negative, first, count, exponent, scale)


cdef inline bint _scaled(double x, int k, uint64_t *digits) noexcept nogil:
    """Find r with r / 10^k == x. At most 15 digits, so no other such decimal shares the double."""
    cdef double r = x * _POWERS[k]
    if not r < 1e15:
        return False
    digits[0] = <uint64_t>(r + 0.5)
    return <double>digits[0] / _POWERS[k] == x


cdef int _double_to_numeric(EncodedBatch out, Plan *plan, double value) except -1:
    cdef bint negative = value < 0
    cdef double x = -value if negative else value
    cdef uint64_t digits = 0
    cdef int k = plan.scale
    cdef bint found
    cdef char[40] text
    if not isfinite(value):
        return NOT_FINITE
    found = _scaled(x, k, &digits)
    if not found:
        k = 0
        while k < 23 and x * _POWERS[k] < 1e15:
            if _scaled(x, k, &digits):
                found = True
                plan.scale = k
                break
            k += 1
    if not found:
        return _short_double(out, plan, negative, text, pgtick_shortest(x, text, 40))
    while k and digits % 10 == 0:
        digits //= 10
        k -= 1
    return _put_numeric(out, plan, negative, digits, -k, k)


cdef int _short_double(EncodedBatch out, Plan *plan, bint negative, const char *text, Py_ssize_t n) except -1:
    """Write what to_chars made: d.ddde+xx, at most 17 digits and no zero at the end."""
    cdef uint64_t digits = 0
    cdef int64_t exponent = 0, decimals = 0
    cdef Py_ssize_t i = 0, j
    while text[i] != c"e":
        if text[i] == c".":
            decimals = -1 - i
        else:
            digits = digits * 10 + <uint64_t>(text[i] - c"0")
        i += 1
    if decimals:
        decimals += i
    for j in range(i + 2, n):
        exponent = exponent * 10 + (text[j] - c"0")
    if text[i + 1] == c"-":
        exponent = -exponent
    exponent -= decimals
    return _put_numeric(out, plan, negative, digits, exponent, -exponent if exponent < 0 else 0)


cdef int _int_to_numeric(EncodedBatch out, Plan *plan, object value) except -1:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    cdef const char *text
    cdef Py_ssize_t n = 0
    if overflow == 0:
        return _put_numeric(
            out, plan, number < 0, 0 - <uint64_t>number if number < 0 else <uint64_t>number, 0, 0
        )
    if int.bit_length(value) > _MAX_BITS:
        return _sign_broken(plan.sign_rule, overflow < 0, False) or NUMERIC_RANGE
    # Not str(int), which refuses more than 4300 digits.
    digits = str(_Decimal(value))
    text = PyUnicode_AsUTF8AndSize(digits, &n)
    return _text_to_numeric(out, plan, text, n)


cdef int _to_numeric(EncodedBatch out, Plan *plan, object value) except -1:
    cdef const char *text
    cdef Py_ssize_t n = 0
    cdef int broken
    if PyFloat_Check(value):
        return _double_to_numeric(out, plan, PyFloat_AS_DOUBLE(value))
    if PyUnicode_Check(value):
        try:
            text = PyUnicode_AsUTF8AndSize(value, &n)
        except UnicodeEncodeError:
            return NOT_NUMBER
        return _text_to_numeric(out, plan, text, n)
    if isinstance(value, _Decimal):
        shown = _Decimal.__str__(value)
        text = PyUnicode_AsUTF8AndSize(shown, &n)
        broken = _text_to_numeric(out, plan, text, n)
        # NaN may carry digits, so it need not be a word that _not_decimal knows.
        return NOT_FINITE if broken == NOT_NUMBER else broken
    if PyBytes_Check(value):
        return _text_to_numeric(out, plan, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if PyBool_Check(value):
        return NOT_NUMBER
    if PyLong_Check(value):
        return _int_to_numeric(out, plan, value)
    if PyIndex_Check(value):
        try:
            whole = PyNumber_Index(value)
        except TypeError:
            return NOT_NUMBER
        return _int_to_numeric(out, plan, whole)
    return NOT_NUMBER


cdef int _to_int(EncodedBatch out, Plan *plan, object value) except -1:
    cdef int overflow = 0, broken
    cdef long long number
    if PyBool_Check(value):
        return NOT_INT
    if not PyLong_Check(value):
        if not PyIndex_Check(value):
            return NOT_INT
        try:
            value = PyNumber_Index(value)
        except TypeError:
            return NOT_INT
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if plan.kind == INT4 and (overflow or not -2147483648 <= number <= 2147483647):
        return INT4_RANGE
    if overflow:
        return INT8_RANGE
    broken = _sign_broken(plan.sign_rule, number < 0, number == 0)
    if broken:
        return broken
    out.reserve(12)
    if plan.kind == INT4:
        _put32(out.data + out.size, 4)
        _put32(out.data + out.size + 4, <uint32_t>number)
        out.size += 8
    else:
        _put32(out.data + out.size, 8)
        _put64(out.data + out.size + 4, <uint64_t>number)
        out.size += 12
    return OK


cdef int _to_double(EncodedBatch out, Plan *plan, object value) except -1:
    cdef double x
    cdef uint64_t bits
    cdef int broken
    if PyFloat_Check(value):
        x = PyFloat_AS_DOUBLE(value)
    elif PyBool_Check(value):
        return NOT_FLOAT
    elif PyIndex_Check(value):
        try:
            x = PyNumber_Index(value)
        except TypeError:
            return NOT_FLOAT
        except OverflowError:
            return NOT_FINITE
    else:
        return NOT_FLOAT
    if not isfinite(x):
        return NOT_FINITE
    broken = _sign_broken(plan.sign_rule, x < 0, x == 0)
    if broken:
        return broken
    out.reserve(12)
    memcpy(&bits, &x, 8)
    _put32(out.data + out.size, 8)
    _put64(out.data + out.size + 4, bits)
    out.size += 12
    return OK

# ---------------------------------------------------------------- the other types


cdef int _to_text(EncodedBatch out, object rule, object value) except -1:
    cdef const char *text
    cdef Py_ssize_t n = 0
    if not PyUnicode_Check(value):
        return NOT_STR
    try:
        text = PyUnicode_AsUTF8AndSize(value, &n)
    except UnicodeEncodeError:
        return NOT_UNICODE
    if n and memchr(text, 0, n) != NULL:
        return HAS_NUL
    if rule is not None:
        for allowed in <tuple>rule:
            if allowed is value or PyUnicode_Compare(allowed, value) == 0:
                break
        else:
            return NOT_ALLOWED
    if n > 0x3FFFFFFF:
        return TOO_LONG
    out.reserve(4 + n)
    _put32(out.data + out.size, <uint32_t>n)
    memcpy(out.data + out.size + 4, text, n)
    out.size += 4 + n
    return OK


cdef int64_t _civil_day(int year, int month, int day) noexcept nogil:
    """Return the days from 2000-01-01 (years begin in March, so that the leap day is the last)."""
    cdef int y = year - (month <= 2)
    cdef int era = y // 400
    cdef int year_of_era = y - era * 400
    cdef int day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return <int64_t>era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 730425


cdef int _to_time(EncodedBatch out, Plan *plan, object value, Clock *clock, int64_t *day) except -1:
    cdef int64_t us
    cdef int overflow = 0
    if dt.PyDateTime_Check(value):
        us = _civil_day(dt.PyDateTime_GET_YEAR(value), dt.PyDateTime_GET_MONTH(value), dt.PyDateTime_GET_DAY(value))
        us = us * 24 + dt.PyDateTime_DATE_GET_HOUR(value)
        us = us * 60 + dt.PyDateTime_DATE_GET_MINUTE(value)
        us = us * 60 + dt.PyDateTime_DATE_GET_SECOND(value)
        us = us * 1000000 + dt.PyDateTime_DATE_GET_MICROSECOND(value)
        if dt.datetime_tzinfo(value) is not _UTC:
            offset = value.utcoffset()
            if offset is None:
                return NAIVE
            if not dt.PyDelta_Check(offset):
                raise TypeError(f"utcoffset() returned {offset!r}")
            us -= (
                <int64_t>dt.timedelta_days(offset) * 86400 + dt.timedelta_seconds(offset)
            ) * 1000000 + dt.timedelta_microseconds(offset)
    else:
        if clock.multiply == 0 or PyBool_Check(value) or not PyIndex_Check(value):
            return NOT_TIME
        try:
            value = PyNumber_Index(value)
        except TypeError:
            return NOT_TIME
        us = PyLong_AsLongLongAndOverflow(value, &overflow)
        # Before 1970 is before 2009, so only the far future has to be kept from overflowing.
        if overflow or us < 0 or us > 9000000000000000000 // clock.multiply:
            return OUT_OF_WINDOW
        us = us * clock.multiply // clock.divide - _EPOCH_UNIX
    if us < _EARLIEST or us > clock.now + plan.max_ahead:
        return OUT_OF_WINDOW
    if plan.is_time:
        day[0] = us // _DAY + _EPOCH_DAY
    out.reserve(12)
    _put32(out.data + out.size, 8)
    _put64(out.data + out.size + 4, <uint64_t>us)
    out.size += 12
    return OK


cdef class _Layout:
    """Where a class of rows keeps its fields: slot offsets, -1 for what only getattr knows."""

    cdef Py_ssize_t *offsets

    def __cinit__(self, cls, tuple names):
        cdef Py_ssize_t i
        self.offsets = <Py_ssize_t *>PyMem_Malloc(max(len(names), 1) * sizeof(Py_ssize_t))
        if self.offsets == NULL:
            raise MemoryError
        for i, name in enumerate(names):
            self.offsets[i] = -1
            for base in cls.__mro__:
                if name in base.__dict__:
                    found = base.__dict__[name]
                    self.offsets[i] = pgtick_slot(<PyObject *>cls, <PyObject *>found)
                    break

    def __dealloc__(self):
        PyMem_Free(self.offsets)


cdef class RowEncoder:
    """Encodes rows of one table: Structs or other objects by attribute, tuples in wire order, dicts by name.

    A content key that is None is made from the row: the row's other fields as they lie on the wire, one after
    the other, are hashed (see content_number). An int8 key is that number, so the same content at the same
    instant is a duplicate; a text key is its decimal text, and the n-th row (n > 1) of identical content in one
    batch hashes with n appended as four bytes: two identical trades are two rows, and a batch that is encoded
    again has the same keys.
    """

    cdef object table
    cdef str name
    cdef tuple columns
    cdef tuple names
    cdef tuple rules
    cdef frozenset ignored
    cdef dict layouts
    cdef Plan *plans
    cdef Py_ssize_t n

    def __cinit__(self, table):
        cdef Py_ssize_t i
        self.table = table
        self.name = table.name
        self.columns = tuple(table.columns)
        self.names = tuple([column.name for column in self.columns])
        self.ignored = frozenset(getattr(table, "read_columns", ())) - frozenset(self.names)
        self.layouts = {}
        self.n = len(self.columns)
        self.plans = <Plan *>PyMem_Calloc(max(self.n, 1), sizeof(Plan))
        if self.plans == NULL:
            raise MemoryError
        rules = []
        for i in range(self.n):
            column = self.columns[i]
            self.plans[i].kind = <Kind><int>_KINDS[column.type]
            self.plans[i].nullable = column.nullable
            self.plans[i].content_key = column.content_key
            self.plans[i].is_time = column.name == table.time_column
            self.plans[i].max_ahead = column.max_ahead // _MICROSECOND
            rule = column.rule
            if rule is None or isinstance(rule, tuple):
                rules.append(rule)
            elif rule in ("> 0", ">= 0"):
                self.plans[i].sign_rule = 1 if rule == "> 0" else 2
                rules.append(None)
            else:
                raise ValueError(f"{self.name}.{column.name}: no such rule: {rule!r}")
        self.rules = tuple(rules)
        if sum([bool(column.content_key) for column in self.columns]) > 8:
            raise ValueError(f"{self.name}: more than 8 content keys")

    def __dealloc__(self):
        PyMem_Free(self.plans)

    def encode(self, rows, *, time_unit=None):
        """Encode all rows that obey the rules; the others become the batch's errors.

        ``time_unit``: s, ms, us or ns, what integer times count; without it they are refused.
        """
        cdef EncodedBatch out = EncodedBatch.__new__(EncodedBatch)
        cdef Clock clock
        cdef Py_ssize_t index = 0
        cdef int64_t day = 0, last_day = 0
        cdef _Layout layout = None
        cdef object cls = None
        cdef dict seen = {}
        self._set_clock(&clock, time_unit)
        for row in rows:
            if not (PyTuple_Check(row) or PyDict_Check(row)) and <PyObject *>cls != pgtick_type(row):
                cls = type(row)
                layout = self._layout(cls)
            day = 0
            if self._row(out, index, row, layout, &clock, seen, &day) and day and day != last_day:
                out.days.add(day)
                last_day = day
            index += 1
        return out

    def canonical(self, row, *, time_unit=None):
        """Return the row's values in wire order as they will be read back; raises RowError with index 0."""
        cdef EncodedBatch out = self.encode((row,), time_unit=time_unit)
        cdef const char *p
        cdef Py_ssize_t i
        cdef int32_t length
        if out.errors:
            raise out.errors[0]
        values = []
        p = out.data + 2
        for i in range(self.n):
            length = int.from_bytes(p[:4], "big", signed=True)
            p += 4
            if length < 0:
                values.append(None)
                continue
            values.append(_decode(self.plans[i].kind, p[:length]))
            p += length
        return tuple(values)

    cdef int _set_clock(self, Clock *clock, object time_unit) except -1:
        clock.now = time.time_ns() // 1000 - _EPOCH_UNIX
        clock.multiply = 0
        clock.divide = 1
        if time_unit is not None:
            if time_unit not in _UNITS:
                raise ValueError(f"time_unit is s, ms, us or ns, not {time_unit!r}")
            clock.multiply, clock.divide = _UNITS[time_unit]
        return 0

    cdef _Layout _layout(self, object cls):
        cdef _Layout layout = self.layouts.get(cls)
        if layout is None:
            # Classes made on the fly must not stay alive here without end.
            if len(self.layouts) >= 64:
                self.layouts.clear()
            layout = self.layouts[cls] = _Layout(cls, self.names)
        return layout

    cdef int _refuse(self, EncodedBatch out, Py_ssize_t index, Py_ssize_t i, object value, int broken) except -1:
        column = self.columns[i]
        if broken == NOT_ALLOWED:
            rule = f"must be one of {', '.join(column.rule)}"
        elif broken == OUT_OF_WINDOW:
            rule = f"must lie between 2009-01-01 and now + {column.max_ahead.days} d"
        else:
            rule = _RULES[broken]
        out.errors.append(RowError(self.name, index, column.name, value, rule))
        return 0

    cdef bint _row(
        self, EncodedBatch out, Py_ssize_t index, object row, _Layout layout, Clock *clock, dict seen, int64_t *day
    ) except -1:
        """Encode one row. Returns whether it was taken; else nothing of it is left but its error."""
        cdef Py_ssize_t start = out.size
        cdef Py_ssize_t i, found = 0, n_keys = 0
        cdef Py_ssize_t[8] keys, key_starts
        cdef int broken
        cdef PyObject *item
        cdef Plan *plan
        cdef int mode = 0
        cdef object value
        if PyTuple_Check(row):
            if PyTuple_GET_SIZE(row) != self.n:
                out.errors.append(RowError(self.name, index, "*", row, f"must have {self.n} fields"))
                return False
            mode = 1
        elif PyDict_Check(row):
            mode = 2
        out.reserve(2 + 32 * self.n)
        _put16(out.data + out.size, <int>self.n)
        out.size += 2
        for i in range(self.n):
            plan = &self.plans[i]
            item = NULL
            if mode == 0:
                if layout.offsets[i] >= 0:
                    item = (<PyObject **>(<char *><PyObject *>row + layout.offsets[i]))[0]
                if item != NULL:
                    value = <object>item
                else:
                    try:
                        value = getattr(row, self.names[i])
                    except AttributeError as error:
                        refused = RowError(self.name, index, self.names[i], row, _RULES[MISSING])
                        refused.__cause__ = error
                        out.errors.append(refused)
                        out.size = start
                        return False
            elif mode == 1:
                value = <object>PyTuple_GET_ITEM(row, i)
            else:
                item = PyDict_GetItemWithError(row, self.names[i])
                if item == NULL:
                    value = None
                else:
                    value = <object>item
                    found += 1
            if value is None:
                if plan.content_key:
                    keys[n_keys] = i
                    key_starts[n_keys] = out.size
                    n_keys += 1
                    continue
                if not plan.nullable:
                    self._refuse(out, index, i, value, IS_NULL)
                    out.size = start
                    return False
                out.reserve(4)
                _put32(out.data + out.size, 0xFFFFFFFF)
                out.size += 4
                continue
            if plan.kind == NUMERIC:
                broken = _to_numeric(out, plan, value)
            elif plan.kind == TEXT:
                broken = _to_text(out, self.rules[i], value)
            elif plan.kind == TIMESTAMPTZ:
                broken = _to_time(out, plan, value, clock, day)
            elif plan.kind == FLOAT8:
                broken = _to_double(out, plan, value)
            elif plan.kind == BOOL:
                broken = OK
                if value is True or value is False:
                    out.reserve(5)
                    _put32(out.data + out.size, 1)
                    out.data[out.size + 4] = <char>(value is True)
                    out.size += 5
                else:
                    broken = NOT_BOOL
            else:
                broken = _to_int(out, plan, value)
            if broken:
                self._refuse(out, index, i, value, broken)
                out.size = start
                return False
        if mode == 2 and found != len(row) and not self._known_keys(out, index, row):
            out.size = start
            return False
        if n_keys:
            self._content_keys(out, start + 2, keys, key_starts, n_keys, seen)
        out.add_row(index)
        return True

    cdef bint _known_keys(self, EncodedBatch out, Py_ssize_t index, object row) except -1:
        for key in row:
            if key not in self.names and key not in self.ignored:
                out.errors.append(RowError(self.name, index, str(key), row[key], "must be a column of the table"))
                return False
        return True

    cdef int _content_keys(
        self, EncodedBatch out, Py_ssize_t start, Py_ssize_t *keys, Py_ssize_t *key_starts, Py_ssize_t n, dict seen
    ) except -1:
        """Insert the content keys into the row, of which all other fields are there."""
        cdef uint64_t plain = _xxh64(<const uint8_t *>out.data + start, out.size - start)
        cdef Py_ssize_t i, at, length
        cdef bint text = False
        cdef char[24] field
        for i in range(n):
            text = text or self.plans[keys[i]].kind == TEXT
        cdef uint64_t counted = plain
        if text:
            occurrence = seen.get(plain, 0) + 1
            seen[plain] = occurrence
            if occurrence > 1:
                out.reserve(4)
                _put32(out.data + out.size, <uint32_t>occurrence)
                counted = _xxh64(<const uint8_t *>out.data + start, out.size + 4 - start)
        for i in range(n - 1, -1, -1):
            if self.plans[keys[i]].kind == TEXT:
                length = snprintf(field, 24, "%lld", <long long>_content_number(counted))
            else:
                _put64(field, <uint64_t>_content_number(plain))
                length = 8
            at = key_starts[i]
            out.reserve(4 + length)
            memmove(out.data + at + 4 + length, out.data + at, out.size - at)
            _put32(out.data + at, <uint32_t>length)
            memcpy(out.data + at + 4, field, length)
            out.size += 4 + length
        return 0


cdef object _decode(Kind kind, bytes data):
    """Return the Python value of a field's bytes."""
    import struct

    if kind == INT4 or kind == INT8:
        return int.from_bytes(data, "big", signed=True)
    if kind == FLOAT8:
        return struct.unpack(">d", data)[0]
    if kind == BOOL:
        return data == b"\x01"
    if kind == TEXT:
        return data.decode()
    if kind == TIMESTAMPTZ:
        return _EPOCH + _timedelta(microseconds=int.from_bytes(data, "big", signed=True))
    n, weight, sign, scale = struct.unpack_from(">HhHH", data)
    digits = "".join([f"{group:04d}" for group in struct.unpack_from(f">{n}H", data, 8)]) or "0"
    if n:
        shift = 4 * (weight - n + 1) + scale
        digits = digits + "0" * shift if shift >= 0 else digits[:shift]
    return _Decimal(f"{'-' if sign else ''}{digits}E-{scale}")
