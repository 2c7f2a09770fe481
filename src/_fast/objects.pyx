"""The Python object of one decoded value, and the text of a numeric."""

cimport cpython.datetime as dt
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport int16_t, int32_t, int64_t

from pgtick._fast.kinds cimport (
    BOOL, BYTES, DATE, FLOAT4, FLOAT8, INSTANT, INT2, INT4, INT8, JSONB, NUMERIC_128, NUMERIC_DOUBLE, NUMERIC_FIXED,
    NUMERIC_WIRE, TEXT, UUID, Kind,
)
from pgtick._fast.wire cimport get16

from datetime import timezone as _timezone
from decimal import Decimal as _Decimal
from uuid import UUID as _UUID

dt.import_datetime()


cdef object value_object(Kind kind, int scale, const char *p, Py_ssize_t length):
    """Return the object, or None for an instant or a day that datetime has not."""
    if kind == FLOAT8 or kind == NUMERIC_DOUBLE:
        return (<double *>p)[0]
    if kind == INT8 or kind == NUMERIC_FIXED:
        return (<int64_t *>p)[0]
    if kind == INT4:
        return (<int32_t *>p)[0]
    if kind == INT2:
        return (<int16_t *>p)[0]
    if kind == FLOAT4:
        return <double>(<float *>p)[0]
    if kind == BOOL:
        return p[0] != 0
    if kind == NUMERIC_WIRE:
        return _Decimal(numeric_text(p, length))
    if kind == NUMERIC_128:
        return _decimal128(p, scale)
    if kind == UUID:
        return _UUID(bytes=p[:16])
    if kind == BYTES:
        return PyBytes_FromStringAndSize(p, length)
    if kind == TEXT or kind == JSONB:
        return PyUnicode_DecodeUTF8(p, length, NULL)
    if kind == DATE:
        return _day((<int32_t *>p)[0])
    return _instant((<int64_t *>p)[0], _timezone.utc if kind == INSTANT else None)


cdef str numeric_text(const char *p, Py_ssize_t length):
    """Return the text PostgreSQL prints for a finite numeric whose wire form is known to be sound."""
    cdef int n = get16(p), weight = <int16_t>get16(p + 2), scale = get16(p + 6)
    cdef Py_ssize_t size = 0, room = 8 + 4 * (<Py_ssize_t>max(weight, 0) + 1) + scale
    cdef char[256] small
    cdef char *out = small
    cdef int group, digit, place, i
    if room > 256:
        out = <char *>PyMem_Malloc(room)
        if out == NULL:
            raise MemoryError
    try:
        if get16(p + 4) == 0x4000:
            out[0] = c"-"
            size = 1
        if weight < 0:
            out[size] = c"0"
            size += 1
        for i in range(weight + 1):
            group = get16(p + 8 + 2 * i) if i < n else 0
            place = 1000
            while place:
                digit = group // place % 10
                # No zero before the first digit, but one digit before the point.
                if digit or i > 0 or place == 1 or group >= place:
                    out[size] = <char>(48 + digit)
                    size += 1
                place //= 10
        if scale:
            out[size] = c"."
            size += 1
            for i in range(scale):
                group = weight + 1 + i // 4
                group = get16(p + 8 + 2 * group) if 0 <= group < n else 0
                place = 3 - i % 4
                while place:
                    group //= 10
                    place -= 1
                out[size] = <char>(48 + group % 10)
                size += 1
        return PyUnicode_DecodeASCII(out, size, NULL)
    finally:
        if out != small:
            PyMem_Free(out)


cdef object _decimal128(const char *p, int scale):
    value = int.from_bytes(p[:16], "little", signed=True)
    return _Decimal(f"{value}E{-scale}")


cdef object _day(int64_t day):
    """Return the date of a day since 1970, or None outside of years 1 to 9999 (Hinnant's days_from_civil, inverted)."""
    if not -719162 <= day <= 2932896:
        return None
    cdef int64_t z = day + 719468
    cdef int64_t era = z // 146097
    cdef int64_t doe = z - era * 146097
    cdef int64_t yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    cdef int64_t doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    cdef int64_t mp = (5 * doy + 2) // 153
    cdef int month = <int>(mp + 3 if mp < 10 else mp - 9)
    return dt.date_new(<int>(yoe + era * 400 + (month <= 2)), month, <int>(doy - (153 * mp + 2) // 5 + 1))


cdef object _instant(int64_t us, object zone):
    """Return the datetime of microseconds since 1970, or None outside of years 1 to 9999."""
    cdef int64_t day = us // 86400000000
    cdef int64_t rest = us - day * 86400000000
    if rest < 0:
        rest += 86400000000
        day -= 1
    date = _day(day)
    if date is None:
        return None
    return dt.datetime_new(
        dt.date_year(date), dt.date_month(date), dt.date_day(date),
        <int>(rest // 3600000000), <int>(rest // 60000000 % 60), <int>(rest // 1000000 % 60), <int>(rest % 1000000),
        zone,
    )
