"""Numbers to the wire form of numeric: digits in groups of four, the scale kept.

The promise: the bytes of a number are the bytes ``numeric_send('...'::numeric)`` gives for its decimal text.
"""

from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint64_t

from pgtick._fast.rules cimport NOT_FINITE, NOT_NUMBER, NUMERIC_RANGE, OK, sign_broken
from pgtick._fast.wire cimport Buffer, put16, put32, reserve

from decimal import Decimal as _Decimal

cdef extern from *:
    """
    #include <charconv>

    static inline Py_ssize_t pgtick_shortest(double x, char *out, Py_ssize_t room) {
        return std::to_chars(out, out + room, x, std::chars_format::scientific).ptr - out;
    }

    /* The head of CPython's Decimal (Modules/_decimal, the same from 3.3 on): libmpdec's number, of words in base
       10^19. Whether it is so in this interpreter is tried at import. */
    typedef struct {
        PyObject_HEAD
        Py_hash_t hash;
        uint8_t flags;  /* 1 negative, 2 infinity, 4 and 8 NaN */
        Py_ssize_t exp, digits, len, alloc;
        uint64_t *data;
    } pgtick_decimal;
    """
    ctypedef struct DecimalHead "pgtick_decimal":
        uint8_t flags
        Py_ssize_t exp
        Py_ssize_t len
        uint64_t *data
    Py_ssize_t pgtick_shortest(double x, char *out, Py_ssize_t room) noexcept nogil

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

# 10^131072 is the first number that numeric cannot hold; it has this many bits.
cdef int _MAX_BITS = 435412

cdef double[23] _POWERS
cdef int _i
for _i in range(23):
    _POWERS[_i] = float(f"1e{_i}")


cdef inline void _head(char *p, int n, int weight, bint negative, int scale) noexcept nogil:
    put32(p, 8 + 2 * n)
    put16(p + 4, n)
    put16(p + 6, weight)
    put16(p + 8, 0x4000 if negative else 0)
    put16(p + 10, scale)


cdef int put_digits(
    Buffer *out, int sign_rule, bint negative, uint64_t digits, int64_t exponent, int64_t scale
) except -1 nogil:
    """Write digits x 10^exponent, shown with ``scale`` decimals."""
    cdef int[6] groups
    cdef int n = 0, skip = 0, i, r, broken
    cdef int64_t low, weight
    cdef char *p
    broken = sign_broken(sign_rule, negative, digits == 0)
    if broken:
        return broken
    if scale > 16383:
        return NUMERIC_RANGE
    reserve(out, 32)
    p = out.data + out.size
    if digits == 0:
        _head(p, 0, 0, False, <int>scale)
        out.size += 12
        return OK
    r = <int>(exponent & 3)
    low = exponent >> 2  # the power of 10000 of the lowest group
    # Each divisor written out: a division by a constant is a multiplication.
    if r == 0:
        groups[0] = <int>(digits % 10000)
        digits //= 10000
    elif r == 1:
        groups[0] = <int>(digits % 1000) * 10
        digits //= 1000
    elif r == 2:
        groups[0] = <int>(digits % 100) * 100
        digits //= 100
    else:
        groups[0] = <int>(digits % 10) * 1000
        digits //= 10
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
    _head(p, n - skip, <int>weight, negative, <int>scale)
    p += 12
    for i in range(n - 1, skip - 1, -1):
        put16(p, groups[i])
        p += 2
    out.size += 12 + 2 * (n - skip)
    return OK


cdef int _put_long(
    Buffer *out, int sign_rule, bint negative, const char *text, Py_ssize_t n, int64_t exponent, int64_t scale
) except -1 nogil:
    """Write the n digits at text (the first is not 0, a point among them is skipped) x 10^exponent."""
    cdef int64_t top = exponent + n - 1, weight = top >> 2
    cdef int place = <int>(top & 3), group = 0, broken
    cdef Py_ssize_t count = 0
    cdef char *p
    broken = sign_broken(sign_rule, negative, False)
    if broken:
        return broken
    if scale > 16383 or weight > 32767:
        return NUMERIC_RANGE
    reserve(out, 12 + n // 2 + 8)
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
                put16(p + 2 * count, group)
                count += 1
                group = 0
                place = 3
            else:
                place -= 1
        text += 1
    while p[2 * count - 2] == 0 and p[2 * count - 1] == 0:
        count -= 1
    _head(out.data + out.size, <int>count, <int>weight, negative, <int>scale)
    out.size += 12 + 2 * count
    return OK


cdef bint _is_word(const char *text, Py_ssize_t n, const char *word, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i
    if n != length:
        return False
    for i in range(n):
        if (text[i] | 32) != word[i]:
            return False
    return True


cdef int _not_decimal(const char *text, Py_ssize_t n) noexcept nogil:
    """Say which rule a text breaks that is no decimal number."""
    if n and (text[0] == c"-" or text[0] == c"+"):
        text += 1
        n -= 1
    if (
        _is_word(text, n, "nan", 3)
        or _is_word(text, n, "snan", 4)
        or _is_word(text, n, "inf", 3)
        or _is_word(text, n, "infinity", 8)
    ):
        return NOT_FINITE
    return NOT_NUMBER


cdef int put_text(Buffer *out, int sign_rule, const char *text, Py_ssize_t n) except -1 nogil:
    """Write a decimal text: digits, one point, an exponent; no white space."""
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
        return put_digits(out, sign_rule, negative, digits, exponent, scale)
    return _put_long(out, sign_rule, negative, first, count, exponent, scale)


cdef inline bint _scaled(double x, int k, uint64_t *digits) noexcept nogil:
    """Find r with r / 10^k == x. At most 15 digits, so no other such decimal shares the double."""
    cdef double r = x * _POWERS[k]
    if not r < 1e15:
        return False
    digits[0] = <uint64_t>(r + 0.5)
    return <double>digits[0] / _POWERS[k] == x


cdef int put_double(Buffer *out, int sign_rule, double value, int *scale_hint) except -1 nogil:
    """Write the shortest text that reads back as the double; ``scale_hint`` is where the search begins."""
    cdef bint negative = value < 0
    cdef double x = -value if negative else value
    cdef uint64_t digits = 0
    cdef int k = scale_hint[0]
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
                scale_hint[0] = k
                break
            k += 1
    if not found:
        return _put_shortest(out, sign_rule, negative, text, pgtick_shortest(x, text, 40))
    while k and digits % 10 == 0:
        digits //= 10
        k -= 1
    return put_digits(out, sign_rule, negative, digits, -k, k)


cdef int _put_shortest(
    Buffer *out, int sign_rule, bint negative, const char *text, Py_ssize_t n
) except -1 nogil:
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
    return put_digits(out, sign_rule, negative, digits, exponent, -exponent if exponent < 0 else 0)


cdef int put_int(Buffer *out, int sign_rule, object value) except -1:
    """Write an int of any size."""
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    cdef const char *text
    cdef Py_ssize_t n = 0
    if overflow == 0:
        return put_digits(
            out, sign_rule, number < 0, 0 - <uint64_t>number if number < 0 else <uint64_t>number, 0, 0
        )
    if int.bit_length(value) > _MAX_BITS:
        return sign_broken(sign_rule, overflow < 0, False) or NUMERIC_RANGE
    # Not str(int), which refuses more than 4300 digits.
    digits = str(_Decimal(value))
    text = PyUnicode_AsUTF8AndSize(digits, &n)
    return put_text(out, sign_rule, text, n)


cdef int put_decimal(Buffer *out, int sign_rule, object value) except -1:
    """Write a Decimal, its scale kept."""
    cdef DecimalHead *head
    if _reads_decimals:
        head = <DecimalHead *><PyObject *>value
        if head.flags & 14:
            return NOT_FINITE
        if head.len == 1 and head.exp <= 1073741823:
            return put_digits(
                out, sign_rule, head.flags & 1, head.data[0], head.exp, -head.exp if head.exp < 0 else 0
            )
    return _put_decimal_text(out, sign_rule, value)


cdef int _put_decimal_text(Buffer *out, int sign_rule, object value) except -1:
    cdef Py_ssize_t n = 0
    shown = _Decimal.__str__(value)
    cdef const char *text = PyUnicode_AsUTF8AndSize(shown, &n)
    cdef int broken = put_text(out, sign_rule, text, n)
    # NaN may carry digits, so it need not be a word that _not_decimal knows.
    return NOT_FINITE if broken == NOT_NUMBER else broken


cdef bint _finds_decimals() except -1:
    """Whether this interpreter's Decimals lie in memory as DecimalHead says."""
    cdef DecimalHead *head
    if _Decimal.__basicsize__ != 16 + sizeof(Py_ssize_t) + 6 * 8 + 4 * 8 or sizeof(PyObject) != 16:
        return False
    for flags, digits, exponent in ((0, 0, 0), (1, 123456789, -5), (0, 10**19 - 1, 77)):
        number = _Decimal((flags, tuple(map(int, str(digits))), exponent))
        head = <DecimalHead *><PyObject *>number
        if (head.flags & 15, head.len, head.exp) != (flags, 1, exponent) or head.data[0] != digits:
            return False
    number = _Decimal(10**19)
    head = <DecimalHead *><PyObject *>number
    return head.len == 2 and head.data[0] == 0 and head.data[1] == 1


cdef bint _reads_decimals = _finds_decimals()
