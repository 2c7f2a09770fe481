# Integers, doubles, texts and times; and all types back from the wire.


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
    cdef int day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return <int64_t>era * 146097 + day_of_era - 730425


cdef int _to_time(EncodedBatch out, Plan *plan, object value, Clock *clock, int64_t *day) except -1:
    cdef int64_t us
    cdef int overflow = 0
    if dt.PyDateTime_Check(value):
        us = _civil_day(
            dt.PyDateTime_GET_YEAR(value), dt.PyDateTime_GET_MONTH(value), dt.PyDateTime_GET_DAY(value)
        )
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


cdef object _decode(Kind kind, bytes data):
    """Return the Python value of a field's bytes."""
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
