"""A column's values to fields, without the GIL: for each way that a value lies in memory the function of its type.

What a value must obey is in values, numeric and times; here it is only read.
"""

from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pgtick._fast cimport numeric
from pgtick._fast.rules cimport (
    INT8_RANGE, NO_ENTRY, NOT_NUMBER, NOT_UNICODE, OK, OUTSIDE, TOO_LONG, Clock, Plan,
)
from pgtick._fast.times cimport put_count, put_day
from pgtick._fast.utf8 cimport from_ucs4, is_utf8
from pgtick._fast.values cimport (
    MAX_BYTES, put_bool, put_bytes, put_float4, put_float8, put_int2, put_int4, put_int8, text_broken,
)
from pgtick._fast.wire cimport Buffer, put32, reserve

from decimal import Decimal as _Decimal

from pgtick._fast.lazy_numpy import numpy as _np

cdef extern from *:
    """
    #define PGTICK_NONE Py_None
    """
    PyObject *NONE "PGTICK_NONE"


cdef inline PyObject *_item(const Source *source, Py_ssize_t i) noexcept nogil:
    """Return the object at a place that need not be aligned."""
    cdef PyObject *item
    memcpy(&item, source.data + i * source.stride, sizeof(PyObject *))
    return item


cdef bint is_null(const Source *source, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t bit, entry
    cdef PyObject *item
    if source.valid != NULL:
        bit = i + source.shift
        if not source.valid[bit >> 3] >> (bit & 7) & 1:
            return True
    if source.mask != NULL and source.mask[i * source.mask_stride]:
        return True
    if source.kind == NOTHING:
        return True
    if source.kind == OBJECT:
        item = _item(source, i)
        return item == NULL or item == NONE
    if source.has_nat:
        return load_int(source.data + i * source.stride, 8) == INT64_MIN
    if source.kind == DICTIONARY and source.dictionary.has_nulls:
        entry = _entry(source, i)
        return entry >= 0 and is_null(source.dictionary, entry)
    return False


cdef Py_ssize_t _entry(const Source *source, Py_ssize_t i) noexcept nogil:
    """Return the index of a value in the dictionary, or -1."""
    cdef int64_t entry = load_int(source.data + i * source.stride, source.width)
    if source.unsigned and source.width < 8:
        entry &= (<int64_t>1 << (8 * source.width)) - 1
    return entry if 0 <= entry < source.n_dictionary else -1


cdef inline bint _whole(const Source *source, Py_ssize_t i, int64_t *number) noexcept nogil:
    """Read an integer; return whether it is an int64."""
    number[0] = load_int(source.data + i * source.stride, source.width)
    if source.kind == INT:
        return True
    if source.width < 8:
        number[0] &= (<int64_t>1 << (8 * source.width)) - 1
    return number[0] >= 0


cdef inline double _real(const Source *source, Py_ssize_t i) noexcept nogil:
    cdef double eight
    cdef float four
    if source.width == 8:
        memcpy(&eight, source.data + i * source.stride, 8)
        return eight
    memcpy(&four, source.data + i * source.stride, 4)
    return four


cdef int _bytes(const Source *source, Py_ssize_t i, const char **text, Py_ssize_t *n) noexcept nogil:
    """Find the bytes of a value; OUTSIDE where they do not lie in the column's data."""
    cdef const char *p
    cdef int64_t start, stop
    cdef int32_t[4] view
    if source.kind == VARYING:
        p = source.offsets + i * source.width
        start = load_int(p, source.width)
        stop = load_int(p + source.width, source.width)
        if not source.first <= start <= stop <= source.last:
            return OUTSIDE
        text[0] = source.data + start
        n[0] = stop - start
        return OK
    p = source.data + i * source.stride
    if source.kind != VIEW:
        n[0] = source.width
        if source.kind == CHARS:
            while n[0] and p[n[0] - 1] == 0:
                n[0] -= 1
        text[0] = p
        return OK
    memcpy(view, p, 16)
    n[0] = view[0]
    if 0 <= view[0] <= 12:
        text[0] = p + 4
        return OK
    if view[0] < 0 or not 0 <= view[2] < source.n_heaps or view[3] < 0:
        return OUTSIDE
    if source.heaps[view[2]] == NULL or <int64_t>view[3] + view[0] > source.heap_sizes[view[2]]:
        return OUTSIDE
    text[0] = source.heaps[view[2]] + view[3]
    return OK


cdef int _constant(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    reserve(out, source.width)
    memcpy(out.data + out.size, source.data, source.width)
    out.size += source.width
    if plan.is_time:
        clock.day = source.day
    return OK


cdef int _object(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    with gil:
        return plan.put(out, plan, <object>_item(source, i), clock)


cdef int _python(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    """Take a value the way that a row's value goes: for the few that are no matter of speed."""
    with gil:
        return plan.put(out, plan, _value(source, i, None), clock)


cdef int _entry_of(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef Py_ssize_t entry = _entry(source, i)
    if entry < 0:
        return NO_ENTRY
    return source.dictionary.take(out, plan, source.dictionary, entry, clock)


cdef int _int2(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef int64_t number
    return put_int2(out, plan, number if _whole(source, i, &number) else INT64_MAX)


cdef int _int4(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef int64_t number
    return put_int4(out, plan, number if _whole(source, i, &number) else INT64_MAX)


cdef int _int8(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef int64_t number
    return put_int8(out, plan, number) if _whole(source, i, &number) else INT8_RANGE


cdef double _number(const Source *source, Py_ssize_t i) noexcept nogil:
    cdef int64_t number
    if source.kind == FLOAT:
        return _real(source, i)
    return <double>number if _whole(source, i, &number) else <double><uint64_t>number


cdef int _float4(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    return put_float4(out, plan, _number(source, i))


cdef int _float8(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    return put_float8(out, plan, _number(source, i))


cdef int _numeric_int(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef int64_t number
    cdef bint negative = _whole(source, i, &number) and number < 0
    return numeric.put_digits(
        out, plan.sign_rule, negative, 0 - <uint64_t>number if negative else <uint64_t>number,
        -source.scale, source.scale if source.scale > 0 else 0,
    )


cdef int _numeric_float(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    if source.width == 8:
        return numeric.put_double(out, plan.sign_rule, _real(source, i), &plan.scale)
    return numeric.put_float(out, plan.sign_rule, <float>_real(source, i))


cdef int _numeric_wide(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    return numeric.put_wide(out, plan.sign_rule, source.data + i * source.stride, source.width, source.scale)


cdef int _numeric_text(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef const char *text
    cdef Py_ssize_t n
    cdef int broken = _bytes(source, i, &text, &n)
    return broken or numeric.put_text(out, plan.sign_rule, text, n)


cdef int _text(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef const char *text
    cdef Py_ssize_t n
    cdef int broken = _bytes(source, i, &text, &n)
    if broken:
        return broken
    if n <= MAX_BYTES and not is_utf8(text, n):
        return NOT_UNICODE
    return text_broken(plan, text, n) or put_bytes(out, text, n)


cdef Py_ssize_t _ucs4_length(const Source *source, const char *p) noexcept nogil:
    cdef Py_ssize_t n = source.width
    cdef uint32_t last
    while n:
        memcpy(&last, p + n - 4, 4)
        if last:
            break
        n -= 4
    return n


cdef int _numeric_ucs4(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef char[1024] text
    cdef const char *p = source.data + i * source.stride
    cdef Py_ssize_t n = _ucs4_length(source, p)
    if n > 1024:
        return _python(out, plan, source, i, clock)
    n = from_ucs4(p, n, text)
    return NOT_NUMBER if n < 0 else numeric.put_text(out, plan.sign_rule, text, n)


cdef int _ucs4(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef const char *p = source.data + i * source.stride
    cdef Py_ssize_t n = _ucs4_length(source, p)
    cdef int broken
    if n > MAX_BYTES:
        return TOO_LONG
    reserve(out, 4 + n)
    n = from_ucs4(p, n, out.data + out.size + 4)
    if n < 0:
        return NOT_UNICODE
    broken = text_broken(plan, out.data + out.size + 4, n)
    if broken:
        return broken
    put32(out.data + out.size, <uint32_t>n)
    out.size += 4 + n
    return OK


cdef int _binary(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef const char *text
    cdef Py_ssize_t n
    return _bytes(source, i, &text, &n) or put_bytes(out, text, n)


cdef int _bool(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    return put_bool(out, _is_true(source, i))


cdef bint _is_true(const Source *source, Py_ssize_t i) noexcept nogil:
    if source.kind == BIT:
        i += source.shift
        return <uint8_t>source.data[i >> 3] >> (i & 7) & 1
    return source.data[i * source.stride] != 0


cdef int _time(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    return put_count(
        out, plan, load_int(source.data + i * source.stride, 8), source.multiply, source.divide, clock
    )


cdef int _count(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    cdef int64_t number
    # What is no int64 lies too far ahead in any unit.
    return put_count(
        out, plan, number if _whole(source, i, &number) else INT64_MAX, clock.multiply, clock.divide, clock
    )


cdef int _day(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil:
    return put_day(out, load_int(source.data + i * source.stride, source.width))


cdef Take _take_of(const Source *source, str type, bint counts) except? NULL:
    """Return how the source's values become the type, or NULL where they cannot."""
    cdef Take none = NULL
    cdef int kind = source.kind
    cdef bint is_bytes = kind in (CHARS, FIXED, VARYING, VIEW)
    if kind in (OBJECT, NOTHING):
        return _object
    if kind == CONSTANT:
        return _constant
    if kind in (INT, UINT):
        if type == "numeric":
            return _numeric_int
        if type == "timestamptz":
            return _count if counts else none
        if type == "int4":
            return _int4
        if type == "int8":
            return _int8
        if type == "int2":
            return _int2
    if kind in (INT, UINT, FLOAT):
        if type == "float8":
            return _float8
        if type == "float4":
            return _float4
        if type == "numeric":
            return _numeric_float
    if type == "numeric":
        if kind == DECIMAL:
            return _numeric_wide
        return _numeric_ucs4 if kind == UCS4 else _numeric_text if is_bytes else none
    if type in ("text", "varchar"):
        if kind == UCS4:
            return _ucs4
        return _text if kind == CHARS or is_bytes and source.is_text else none
    if type == "bytea":
        return _binary if is_bytes and not source.is_text else none
    if type == "uuid":
        if kind == FIXED and source.width == 16:
            return _binary
        return _python if kind == UCS4 or is_bytes and source.is_text else none
    if type == "bool":
        return _bool if kind in (BOOL, BIT) else none
    if type == "timestamptz":
        return _time if kind == TIME else none
    if type == "date":
        return _day if kind == DAY else none
    return none


cdef int choose(Piece piece, Plan *plan, str type, Clock *clock) except -1:
    """Find how the values become fields of the type; return whether they can."""
    cdef Source *source = &piece.source
    if source.kind == DICTIONARY:
        source.take = _entry_of
        return choose(piece.dictionary, plan, type, clock)
    source.take = _take_of(source, type, clock.multiply != 0)
    return source.take != NULL


cdef object value_at(Piece piece, Py_ssize_t i):
    """Return the value as Python has it, for naming it in an error."""
    if is_null(&piece.source, i):
        return None
    if piece.source.kind == DICTIONARY and 0 <= _entry(&piece.source, i):
        return value_at(piece.dictionary, _entry(&piece.source, i))
    return _value(&piece.source, i, piece.time_unit)


cdef object _value(Source *source, Py_ssize_t i, object time_unit):
    cdef const char *p = source.data + i * source.stride
    cdef const char *text
    cdef Py_ssize_t n
    cdef int64_t number
    if source.kind == OBJECT:
        return <object>_item(source, i)
    if source.kind in (INT, UINT):
        if _whole(source, i, &number):
            whole = <object>number
        else:
            whole = <object><uint64_t>number
        return _Decimal(whole).scaleb(-source.scale) if source.scale else whole
    if source.kind == FLOAT:
        return _real(source, i)
    if source.kind == DECIMAL:
        digits = int.from_bytes(p[:source.width], "little", signed=True)
        return _Decimal((digits < 0, tuple(map(int, str(abs(digits)))), -source.scale))
    if source.kind in (BOOL, BIT):
        return _is_true(source, i)
    if source.kind in (TIME, DAY, DICTIONARY):
        number = load_int(p, source.width)
        return _np.datetime64(number, time_unit) if time_unit is not None else number
    if source.kind == UCS4:
        data = p[:_ucs4_length(source, p)]
        try:
            return data.decode("utf-32-le", "surrogatepass")
        except UnicodeDecodeError:
            return data
    if _bytes(source, i, &text, &n):
        return None
    data = text[:n]
    try:
        return data.decode() if source.is_text else data
    except UnicodeDecodeError:
        return data
