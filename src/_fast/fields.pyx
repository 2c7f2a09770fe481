"""One field's bytes into its column's memory, by the kind of its wire form; no GIL, no object."""

from libc.math cimport NAN
from libc.stdint cimport INT32_MIN, INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pgtick._fast.result cimport Store
from pgtick._fast.kinds cimport (
    BOOL, BYTES, DATE, EPOCH_DAYS, EPOCH_US, FLOAT4, FLOAT8, INSTANT, INT2, INT4, INT8, JSONB, NUMERIC_128,
    NUMERIC_DOUBLE, NUMERIC_FIXED, TEXT, UUID, WALL,
)
from pgtick._fast.memory cimport resize
from pgtick._fast.numeric_out cimport FITS, check_numeric, to_double, to_int64, to_int128
from pgtick._fast.wire cimport get16, get32, get64


cdef bint _is_utf8(const char *text, Py_ssize_t size) noexcept nogil:
    """Whether the bytes are UTF-8: no overlong form, no surrogate, nothing above U+10FFFF."""
    cdef const uint8_t *p = <const uint8_t *>text
    cdef const uint8_t *end = p + size
    cdef uint64_t eight
    cdef uint8_t first, low, high
    cdef int more
    while p < end:
        if end - p >= 8:
            memcpy(&eight, p, 8)
            if not eight & <uint64_t>0x8080808080808080ULL:
                p += 8
                continue
        first = p[0]
        p += 1
        if first < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= first <= 0xDF:
            more = 1
        elif 0xE0 <= first <= 0xEF:
            more = 2
            if first == 0xE0:
                low = 0xA0
            elif first == 0xED:
                high = 0x9F
        elif 0xF0 <= first <= 0xF4:
            more = 3
            if first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F
        else:
            return False
        if end - p < more or not low <= p[0] <= high:
            return False
        while more > 1:
            more -= 1
            if p[more] & 0xC0 != 0x80:
                return False
        p += 2 if 0xE0 <= first <= 0xEF else (3 if first >= 0xF0 else 1)
    return True


cdef int _append(Store *store, Py_ssize_t row, const char *p, Py_ssize_t length) noexcept nogil:
    """Lay bytes behind those of the row before."""
    cdef int64_t *offsets = <int64_t *>store.values
    cdef Py_ssize_t needed = offsets[row] + length, room
    cdef char *data
    if needed > store.data_room:
        room = max(2 * store.data_room, needed)
        data = <char *>resize(store.data, room)
        if data == NULL:
            return NO_MEMORY
        store.data = data
        store.data_room = room
    if length:
        memcpy(store.data + offsets[row], p, length)
    offsets[row + 1] = needed
    return FITS


cdef int decode_field(Store *store, Py_ssize_t row, const char *p, Py_ssize_t length) noexcept nogil:
    """Decode a field that is there whole; returns FITS or what is wrong."""
    cdef int kind = store.kind
    cdef int64_t time
    cdef int32_t day
    if kind == NUMERIC_DOUBLE:
        return to_double(p, length, <double *>store.values + row)
    if kind == INSTANT or kind == WALL:
        if length != 8:
            return WRONG_LENGTH
        time = <int64_t>get64(p)
        if time == INT64_MAX or time == INT64_MIN:
            return INFINITE_TIME
        if time > INT64_MAX - EPOCH_US:
            return FAR_TIME
        (<int64_t *>store.values)[row] = time + EPOCH_US
    elif kind == INT8 or kind == FLOAT8:
        if length != 8:
            return WRONG_LENGTH
        (<uint64_t *>store.values)[row] = get64(p)
    elif kind == INT4 or kind == FLOAT4:
        if length != 4:
            return WRONG_LENGTH
        (<uint32_t *>store.values)[row] = get32(p)
    elif kind == INT2:
        if length != 2:
            return WRONG_LENGTH
        (<uint16_t *>store.values)[row] = get16(p)
    elif kind == BOOL:
        if length != 1:
            return WRONG_LENGTH
        if <uint8_t>p[0] > 1:
            return NOT_A_BOOL
        store.values[row] = p[0]
    elif kind == TEXT:
        return _append(store, row, p, length) if _is_utf8(p, length) else NOT_UTF8
    elif kind == BYTES:
        return _append(store, row, p, length)
    elif kind == JSONB:
        if length < 1 or p[0] != 1:
            return NOT_JSONB
        return _append(store, row, p + 1, length - 1) if _is_utf8(p + 1, length - 1) else NOT_UTF8
    elif kind == UUID:
        if length != 16:
            return WRONG_LENGTH
        memcpy(store.values + 16 * row, p, 16)
    elif kind == DATE:
        if length != 4:
            return WRONG_LENGTH
        day = <int32_t>get32(p)
        if day == 0x7FFFFFFF or day == INT32_MIN:
            return INFINITE_TIME
        if day > 0x7FFFFFFF - EPOCH_DAYS:
            return FAR_TIME
        (<int32_t *>store.values)[row] = day + EPOCH_DAYS
    elif kind == NUMERIC_FIXED:
        return to_int64(p, length, store.scale, <int64_t *>store.values + row)
    elif kind == NUMERIC_128:
        return to_int128(p, length, store.precision, store.scale, <uint64_t *>store.values + 2 * row)
    else:  # NUMERIC_WIRE
        kind = check_numeric(p, length)
        return kind if kind else _append(store, row, p, length)
    return FITS


cdef int null_field(Store *store, Py_ssize_t row, Py_ssize_t room) noexcept nogil:
    """Lay a NULL; ``room``: the rows that the column has memory for."""
    cdef int kind = store.kind
    if store.valid == NULL:
        store.valid = <uint8_t *>resize(NULL, (room + 7) // 8)
        if store.valid == NULL:
            return NO_MEMORY
        memset(store.valid, 0xFF, (room + 7) // 8)
    store.valid[row >> 3] &= <uint8_t>~(1 << (row & 7))
    if kind == NUMERIC_DOUBLE or kind == FLOAT8:
        (<double *>store.values)[row] = NAN
    elif kind == FLOAT4:
        (<float *>store.values)[row] = <float>NAN
    elif kind == INSTANT or kind == WALL:
        (<int64_t *>store.values)[row] = INT64_MIN  # NumPy's NaT
    elif store.width == 0:
        (<int64_t *>store.values)[row + 1] = (<int64_t *>store.values)[row]
    else:
        memset(store.values + store.width * row, 0, store.width)
    return FITS
