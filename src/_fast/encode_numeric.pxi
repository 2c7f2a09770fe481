# Numbers to the wire form of numeric: digits in groups of four, the scale kept.

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
    _numeric_head(p, n - skip, <int>weight, negative, <int>scale)
    p += 12
    for i in range(n - 1, skip - 1, -1):
        _put16(p, groups[i])
        p += 2
    out.size += 12 + 2 * (n - skip)
    return OK


cdef int _put_long_numeric(
    EncodedBatch out,
    Plan *plan,
    bint negative,
    const char *text,
    Py_ssize_t n,
    int64_t exponent,
    int64_t scale,
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
