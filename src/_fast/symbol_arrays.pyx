"""Whole arrays through a SymbolCache: names to ids, ids to symbols.

Arrow arrays come through their ``tolist`` like any other; reading their buffers in place would be one more branch
beside own_list.
"""

from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.list cimport PyList_GET_ITEM
from cpython.long cimport PyLong_Check
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strchr

from pgtick._fast.symbol_tables cimport (
    MAX_SLOTS, Row, Tables, by_any_id, exact_text, hash_venue, likely, slot_of, venue_entry,
)

from pgtick.errors import short_repr as _repr

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object o)


cdef list own_list(object values, str name):
    """Return the values in a list that nobody else holds, so that it stays as it is while it is walked."""
    if not isinstance(values, (str, bytes)) and hasattr(values, "tolist"):
        values = values.tolist()  # in C, where iterating an array makes a NumPy scalar of each
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be an array or a list, not {type(values).__name__}")
    return list(values)


cdef object ids_of(Tables tables, object exchange, list names, bint require, Counts* counts):
    cdef Py_ssize_t i, n = len(names), n_found = 0
    cdef PyObject* row
    ids = PyByteArray_FromStringAndSize(NULL, n * sizeof(int32_t))
    cdef int32_t* out = <int32_t*>PyByteArray_AS_STRING(ids)
    for i in range(n):
        name = <object>PyList_GET_ITEM(names, i)
        if not likely(PyUnicode_CheckExact(name)):
            if not PyUnicode_Check(name):
                raise TypeError(f"exchange_symbols[{i}] must be a str, not {type(name).__name__}")
            name = exact_text(name, "exchange_symbol")
        row = venue_entry(&tables.arrays, hash_venue(exchange, name), exchange, name).row
        if row != NULL:
            out[i] = (<Row>row).int4
            if out[i] == 0:
                raise OverflowError(f"exchange_symbols[{i}]: id {(<Row>row).id} of {_repr(name)} is 0 or not int4")
            n_found += 1
        elif require:
            counts[0] = Counts(i, 1)
            raise LookupError(f"exchange_symbols[{i}]: {_repr(exchange)} has no symbol {_repr(name)}")
        else:
            out[i] = 0
    counts[0] = Counts(n_found, n - n_found)
    return ids


cdef list _symbols_of_list(Tables tables, list ids, bint require, Counts* counts):
    cdef Py_ssize_t i, n_found = 0
    cdef PyObject* symbol
    found = []
    for i in range(len(ids)):
        number = <object>PyList_GET_ITEM(ids, i)
        if not PyLong_Check(number) or PyBool_Check(number):
            raise TypeError(f"ids[{i}] must be an int, not {type(number).__name__}")
        symbol = slot_of(&tables.arrays, number)
        if symbol == NULL:
            symbol = by_any_id(tables, number)
        if symbol == NULL and require:
            counts[0] = Counts(i, 1)
            raise LookupError(f"ids[{i}]: there is no symbol {number}")
        n_found += symbol != NULL
        found.append(None if symbol == NULL else <object>symbol)
    counts[0] = Counts(n_found, len(ids) - n_found)
    return found


cdef list _symbols_of_buffer(Tables tables, Py_buffer* view, bint require, Counts* counts):
    cdef Py_ssize_t i, n = view.shape[0], n_found = 0
    cdef PyObject* symbol
    cdef uint64_t value
    cdef bint signed = _is_signed(view)
    cdef list found = [None] * n
    for i in range(n):
        value = _load(<char*>view.buf + i * view.strides[0], view.itemsize, signed)
        symbol = tables.arrays.slots[value] if value < tables.arrays.n_slots else NULL
        if symbol == NULL and value >= MAX_SLOTS:
            symbol = by_any_id(tables, _number_of(value, signed))
        if symbol != NULL:
            found[i] = <object>symbol
            n_found += 1
        elif require:
            counts[0] = Counts(i, 1)
            raise LookupError(f"ids[{i}]: there is no symbol {_number_of(value, signed)}")
    counts[0] = Counts(n_found, n - n_found)
    return found


cdef object _number_of(uint64_t value, bint signed):
    if signed:
        return <int64_t>value
    return value


cdef bint _is_signed(Py_buffer* view) noexcept:
    return strchr("bhilqn", view.format[0]) != NULL


# Sign-extended: a negative number becomes one beyond every slot. memcpy: a strided item may lie unaligned.
cdef inline uint64_t _load(const char* item, Py_ssize_t size, bint signed) noexcept:
    cdef int32_t i4 = 0
    cdef uint32_t u4 = 0
    cdef int16_t i2 = 0
    cdef uint16_t u2 = 0
    cdef uint64_t u8 = 0
    if size == 8:
        memcpy(&u8, item, 8)
        return u8
    if size == 4:
        memcpy(&u4, item, 4)
        memcpy(&i4, item, 4)
        return <uint64_t><int64_t>i4 if signed else u4
    if size == 2:
        memcpy(&u2, item, 2)
        memcpy(&i2, item, 2)
        return <uint64_t><int64_t>i2 if signed else u2
    return <uint64_t><int64_t>(<const int8_t*>item)[0] if signed else (<const uint8_t*>item)[0]


cdef object own_ids(object ids):
    """Return a memoryview where the ids are one row of integers in the machine's own format, else a list."""
    if PyObject_CheckBuffer(ids) and not isinstance(ids, bytes):
        try:
            view = memoryview(ids)
        except (BufferError, ValueError):  # NumPy has no buffer format for a time
            return own_list(ids, "ids")
        if view.ndim == 1 and len(view.format) == 1 and view.format in "bhilqnBHILQN":
            return view
    return own_list(ids, "ids")


cdef list symbols_of(Tables tables, object ids, bint require, Counts* counts):
    cdef Py_buffer view
    if isinstance(ids, list):
        return _symbols_of_list(tables, ids, require, counts)
    PyObject_GetBuffer(ids, &view, PyBUF_FORMAT | PyBUF_STRIDES)
    try:
        return _symbols_of_buffer(tables, &view, require, counts)
    finally:
        PyBuffer_Release(&view)
