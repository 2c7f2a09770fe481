"""numeric's wire form to double, to fixed point and to decimal128, without the GIL.

The form: the number of base-10000 digits, the weight of the first, the sign, the decimals shown, the digits.
A double is the nearest one to the exact decimal, as float() of its text: a mantissa up to 2^53 and a power of ten
up to 10^22 are exact doubles, so one division or multiplication rounds once (Clinger 1990); all others go
through std::from_chars or, where a library has none, strtod, by a text without a point, which no locale changes.
"""

from libc.math cimport INFINITY, NAN
from libc.stdint cimport INT64_MAX, int16_t, int64_t, uint32_t, uint64_t

from pgtick._fast.wire cimport get16

cdef extern from *:
    """
    #include <charconv>
    #include <cstdlib>
    #include <system_error>

    static inline double pgtick_nearest(const char *text, const char *end) {
    #if defined(__cpp_lib_to_chars) || defined(_MSC_VER)
        double value;
        auto result = std::from_chars(text, end, value);
        if (result.ec == std::errc())
            return value;
    #endif
        return std::strtod(text, nullptr); /* 0 and infinity too: what lies beyond a double */
    }
    """
    double pgtick_nearest(const char *text, const char *end) noexcept nogil

cdef enum:
    NEGATIVE = 0x4000
    # A double's nearest neighbours are told apart by at most 767 digits; one more says that others follow.
    MAX_GROUPS = 200
    MAX_SCALE = 16383

cdef double[23] _POWERS = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
    1e20, 1e21, 1e22,
]
cdef uint32_t[10] _TENS = [
    1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000,
]


cdef inline int _check_head(const char *p, Py_ssize_t length) noexcept nogil:
    cdef int sign
    if length < 8:
        return MALFORMED
    sign = get16(p + 4)
    if sign == 0xC000 or sign == 0xD000 or sign == 0xF000:
        return NOT_FINITE if length == 8 + 2 * <Py_ssize_t>get16(p) else MALFORMED
    if (sign != 0 and sign != NEGATIVE) or get16(p + 6) > MAX_SCALE or length != 8 + 2 * <Py_ssize_t>get16(p):
        return MALFORMED
    return FITS


cdef int check_numeric(const char *p, Py_ssize_t length) noexcept nogil:
    cdef int i, state = _check_head(p, length)
    if state == FITS:
        for i in range(get16(p)):
            if get16(p + 8 + 2 * i) > 9999:
                return MALFORMED
    return state


cdef int to_double(const char *p, Py_ssize_t length, double *out) noexcept nogil:
    cdef int state = _check_head(p, length)
    cdef int n, i, group, exponent, sign
    cdef uint64_t mantissa = 0
    cdef double value
    if state == NOT_FINITE:
        sign = get16(p + 4)
        out[0] = NAN if sign == 0xC000 else (INFINITY if sign == 0xD000 else -INFINITY)
        return FITS
    if state != FITS:
        return state
    n = get16(p)
    exponent = 4 * (<int16_t>get16(p + 2) - n + 1)
    # Five groups stay below 2^64 where the first is below 1000.
    if n < 5 or (n == 5 and get16(p + 8) < 1000):
        for i in range(n):
            group = get16(p + 8 + 2 * i)
            if group > 9999:
                return MALFORMED
            mantissa = mantissa * 10000 + group
        while mantissa > <uint64_t>1 << 53 and mantissa % 10 == 0:
            mantissa //= 10
            exponent += 1
        if mantissa <= <uint64_t>1 << 53 and -22 <= exponent <= 22:
            value = <double>mantissa
            value = value / _POWERS[-exponent] if exponent < 0 else value * _POWERS[exponent]
            out[0] = -value if get16(p + 4) == NEGATIVE and mantissa else value
            return FITS
    return _to_double_by_text(p, out)


cdef int _to_double_by_text(const char *p, double *out) noexcept nogil:
    cdef char[4 * MAX_GROUPS + 16] text
    cdef char *at = text
    cdef int n = get16(p), i, group
    cdef int used = min(n, MAX_GROUPS)
    cdef int exponent = 4 * (<int16_t>get16(p + 2) - used + 1)
    cdef bint more = False, zero = True
    cdef double value
    for i in range(n):
        group = get16(p + 8 + 2 * i)
        if group > 9999:
            return MALFORMED
        if group:
            zero = False
        if i < used:
            at[0] = <char>(48 + group // 1000)
            at[1] = <char>(48 + group // 100 % 10)
            at[2] = <char>(48 + group // 10 % 10)
            at[3] = <char>(48 + group % 10)
            at += 4
        elif group:
            more = True
    if zero:
        out[0] = 0.0
        return FITS
    if more:
        at[0] = c"1"
        at += 1
        exponent -= 1
    at[0] = c"e"
    at[1] = c"-" if exponent < 0 else c"+"
    if exponent < 0:
        exponent = -exponent
    at += 2
    for i in range(5, -1, -1):
        at[i] = <char>(48 + exponent % 10)
        exponent //= 10
    at += 6
    at[0] = 0
    value = pgtick_nearest(text, at)
    out[0] = -value if get16(p + 4) == NEGATIVE else value
    return FITS


cdef inline bint _times(uint64_t *value, uint32_t factor, uint32_t plus) noexcept nogil:
    """value = value * factor + plus in 128 bits, low word first; returns whether it fits."""
    cdef uint64_t low, high, carry = plus
    cdef int i
    if value[1] == 0 and value[0] < <uint64_t>1 << 34:  # a factor is below 2^30
        value[0] = value[0] * factor + plus
        return True
    for i in range(2):
        low = <uint64_t><uint32_t>value[i] * factor + carry
        high = (value[i] >> 32) * factor + (low >> 32)
        value[i] = (high << 32) | <uint32_t>low
        carry = high >> 32
    return carry == 0


cdef int _scaled(const char *p, Py_ssize_t length, int scale, uint64_t *value) noexcept nogil:
    """The magnitude of the number times 10^scale."""
    cdef int state = check_numeric(p, length)
    cdef int n, i, group, place
    if state != FITS:
        return state
    value[0] = value[1] = 0
    n = get16(p)
    place = 4 * <int16_t>get16(p + 2) + scale  # the power of ten that the group counts
    for i in range(n):
        group = get16(p + 8 + 2 * i)
        if place >= 0:
            if not _times(value, 10000, group):
                return TOO_LARGE
        elif place > -4:
            if group % <int>_TENS[-place]:
                return INEXACT
            if not _times(value, _TENS[4 + place], group // <int>_TENS[-place]):
                return TOO_LARGE
        elif group:
            return INEXACT
        place -= 4
    place += 4
    while place > 0 and (value[0] or value[1]):
        if not _times(value, _TENS[min(place, 9)], 0):
            return TOO_LARGE
        place -= 9
    return FITS


cdef int to_int64(const char *p, Py_ssize_t length, int scale, int64_t *out) noexcept nogil:
    cdef uint64_t[2] value
    cdef int state = _scaled(p, length, scale, value)
    if state != FITS:
        return state
    if value[1] or value[0] > <uint64_t>INT64_MAX:
        return TOO_LARGE
    out[0] = -<int64_t>value[0] if get16(p + 4) == NEGATIVE else <int64_t>value[0]
    return FITS


cdef int to_int128(const char *p, Py_ssize_t length, int precision, int scale, uint64_t *out) noexcept nogil:
    """Two's complement in 128 bits, low word first (Arrow's decimal128 on a little-endian machine)."""
    cdef uint64_t[2] value
    cdef const uint64_t *limit = _LIMITS[precision]
    cdef int state = _scaled(p, length, scale, value)
    if state != FITS:
        return state
    if value[1] > limit[1] or (value[1] == limit[1] and value[0] >= limit[0]):
        return TOO_LARGE
    if get16(p + 4) == NEGATIVE:
        value[0] = ~value[0] + 1
        value[1] = ~value[1] + (value[0] == 0)
    out[0] = value[0]
    out[1] = value[1]
    return FITS


cdef uint64_t[39][2] _LIMITS  # 10^precision


cdef void _set_limits() noexcept:
    cdef int i
    _LIMITS[0][0] = 1
    for i in range(1, 39):
        _LIMITS[i][0], _LIMITS[i][1] = _LIMITS[i - 1][0], _LIMITS[i - 1][1]
        _times(_LIMITS[i], 10, 0)


_set_limits()
