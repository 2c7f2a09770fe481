"""What a query returned, column by column: NumPy arrays, Arrow, Python objects, Structs, from one memory.

A type of PostgreSQL is one line of ``_TYPES``: its OID, its name, and the kind of its wire form. A wire form
that is not there yet is a Kind more: how it lies in memory (``_KINDS``), how it is decoded (``decode.pyx``)
and which Python object it is (``objects.pyx``).
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset
from libcpp.memory cimport make_shared, shared_ptr
from libcpp.vector cimport vector

from pgtick._fast.arrow_out cimport Batch, Field, Memory, array_capsule, own, schema_capsule, stream_capsule
from pgtick._fast.result cimport Held, Store
from pgtick._fast.kinds cimport (
    BOOL, BYTES, DATE, FLOAT4, FLOAT8, INSTANT, INT2, INT4, INT8, JSONB, NUMERIC_128, NUMERIC_DOUBLE, NUMERIC_FIXED,
    NUMERIC_WIRE, TEXT, UUID, WALL, Kind,
)
from pgtick._fast.memory cimport resize
from pgtick._fast.objects cimport value_object

from pgtick._fast.lazy_numpy import numpy as _np
from pgtick.errors import DecodeError as _DecodeError

cdef extern from "Python.h":
    object PyObject_Vectorcall(object callable, PyObject **args, size_t n, PyObject *names)

# A large text keeps 64-bit offsets, so that no column is ever too long for them.
_KINDS = {  # kind: (bytes a value, 0: any number; Arrow's format; NumPy's type of these bytes, None: objects)
    BOOL: (1, "b", "?"),
    INT2: (2, "s", "i2"),
    INT4: (4, "i", "i4"),
    INT8: (8, "l", "i8"),
    FLOAT4: (4, "f", "f4"),
    FLOAT8: (8, "g", "f8"),
    NUMERIC_DOUBLE: (8, "g", "f8"),
    NUMERIC_FIXED: (8, "l", "i8"),
    NUMERIC_128: (16, "d:{precision},{scale}", None),
    NUMERIC_WIRE: (0, None, None),
    INSTANT: (8, "tsu:UTC", "M8[us]"),
    WALL: (8, "tsu:", "M8[us]"),
    DATE: (4, "tdD", "i4"),
    UUID: (16, "w:16", None),
    TEXT: (0, "U", None),
    BYTES: (0, "Z", None),
    JSONB: (0, "U", None),
}
_NUMERIC = 1700
_TYPES = {  # OID: (name, kind)
    16: ("bool", BOOL),
    17: ("bytea", BYTES),
    19: ("name", TEXT),
    20: ("int8", INT8),
    21: ("int2", INT2),
    23: ("int4", INT4),
    25: ("text", TEXT),
    114: ("json", TEXT),
    700: ("float4", FLOAT4),
    701: ("float8", FLOAT8),
    1042: ("bpchar", TEXT),
    1043: ("varchar", TEXT),
    1082: ("date", DATE),
    1114: ("timestamp", WALL),
    1184: ("timestamptz", INSTANT),
    _NUMERIC: ("numeric", NUMERIC_DOUBLE),
    2950: ("uuid", UUID),
    3802: ("jsonb", JSONB),
}
#: {OID: name} of the types that can be read.
READABLE_TYPES = {oid: entry[0] for oid, entry in _TYPES.items()}
_DECIMALS = {"float": NUMERIC_DOUBLE, "decimal": NUMERIC_WIRE, "fixed": NUMERIC_FIXED, "decimal128": NUMERIC_128}


cdef int column_store(Store *store, unsigned int oid, object decimals) except -1:
    """Lay out a column. ``decimals``: ("float",), ("decimal",), ("fixed", scale), ("decimal128", precision, scale)."""
    memset(store, 0, sizeof(Store))
    kind = _TYPES[oid][1]
    if oid == _NUMERIC:
        kind = _DECIMALS[decimals[0]]
        if kind == NUMERIC_FIXED:
            store.precision, store.scale = 18, decimals[1]
        elif kind == NUMERIC_128:
            store.precision, store.scale = decimals[1:]
        if not (0 <= store.precision <= 38 and -38 <= store.scale <= 38):
            raise ValueError(f"no such decimals: {decimals!r}")
    store.kind = <Kind><int>kind
    store.width = _KINDS[kind][0]
    return 0


cdef class _Bytes:
    """A block of a column's memory behind the buffer protocol, read-only."""

    cdef Memory memory
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.memory.get(), self.size, True, flags)


cdef object _view(Memory memory, Py_ssize_t size, dtype):
    cdef _Bytes block = _Bytes.__new__(_Bytes)
    if size == 0:
        return _np.empty(0, dtype)
    block.memory = memory
    block.size = size
    return _np.frombuffer(block, dtype)


@cython.final
cdef class Columns:
    """The rows of a result, or of a chunk of it; ``len()`` is their number.

    ``first_row``: where a chunk begins in the whole result. ``columns`` and ``masks``: {name: NumPy array},
    read-only views of the same memory that goes out as Arrow. ``masks`` are True where a value is NULL; there
    the column holds NaN, NaT, None, or 0 for integers and bools. A date is datetime64[D], both timestamps are
    datetime64[us] (a timestamptz in UTC); text, bytes, UUIDs and Decimals are arrays of objects.
    Any consumer of Arrow's PyCapsule interface takes it as it is: ``pyarrow.table(x)``, ``polars.DataFrame(x)``.
    """

    def __cinit__(self):
        self.names = ()
        self._arrays = {}
        self._masks = {}

    def __init__(self):
        raise TypeError("Columns come from a CopyDecoder")

    def __len__(self):
        return self.n_rows

    def __repr__(self):
        return f"Columns({self.n_rows} rows: {', '.join(self.names)})"

    def __getitem__(self, name):
        if name not in self._arrays:
            self._arrays[name] = self._array(self._index(name))
        return self._arrays[name]

    @property
    def columns(self):
        return {name: self[name] for name in self.names}

    @property
    def masks(self):
        cdef Py_ssize_t i
        for i in range(len(self.names)):
            if self.names[i] not in self._masks:
                self._masks[self.names[i]] = self._mask(i)
        return dict(self._masks)

    @property
    def n_bytes(self):
        """The memory held, without that of Python objects."""
        cdef Py_ssize_t total = 0, i
        for i in range(<Py_ssize_t>self.held.size()):
            total += self.held[i].width * self.n_rows if self.held[i].width else 8 * (self.n_rows + 1)
            total += self.held[i].data_size
            if self.valid[i].get() != NULL:
                total += (self.n_rows + 7) // 8
        return total

    def objects(self, name):
        """Return the column as a list of Python objects, None where NULL."""
        return self._objects(self._index(name))

    def structs(self, model):
        """Return an instance of ``model`` a row, each column given by its name."""
        cdef Py_ssize_t n = len(self.names), i, row
        cdef vector[PyObject *] args
        cdef list columns = []
        cdef list out = []
        for i in range(n):
            columns.append(self._objects(i))
        args.resize(n + 1)
        for row in range(self.n_rows):
            for i in range(n):
                args[i] = <PyObject *>(<list>columns[i])[row]
            out.append(PyObject_Vectorcall(model, args.data(), 0, <PyObject *>self.names))
        return out

    def __arrow_c_schema__(self):
        self._export()
        return schema_capsule(self.batch)

    def __arrow_c_array__(self, requested_schema=None):
        self._export()
        return schema_capsule(self.batch), array_capsule(self.batch)

    def __arrow_c_stream__(self, requested_schema=None):
        self._export()
        return stream_capsule(self.batch)

    def _index(self, name):
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(name) from None

    def _mask(self, Py_ssize_t i):
        if self.valid[i].get() == NULL:
            return _np.broadcast_to(_np.False_, (self.n_rows,))
        bits = _view(self.valid[i], (self.n_rows + 7) // 8, "u1")
        mask = _np.unpackbits(bits, count=self.n_rows, bitorder="little").view("?")
        _np.logical_not(mask, out=mask)
        mask.flags.writeable = False
        return mask

    cdef int add(self, Store *store) except -1:
        """Take the memory of a column over; the store is left empty."""
        cdef Held held
        cdef Py_ssize_t i, n_bytes = (self.n_rows + 7) // 8
        held.kind, held.width, held.scale, held.precision = store.kind, store.width, store.scale, store.precision
        held.n_nulls = held.data_size = 0
        if store.width == 0:
            held.data_size = (<int64_t *>store.values)[self.n_rows]
            if held.data_size < store.data_room:
                store.data = _shrunk(store.data, held.data_size)
        store.values = _shrunk(store.values, store.width * self.n_rows if store.width else 8 * (self.n_rows + 1))
        if store.valid != NULL:
            for i in range(self.n_rows):
                held.n_nulls += not store.valid[i >> 3] >> (i & 7) & 1
            store.valid = <uint8_t *>_shrunk(<char *>store.valid, n_bytes)
        self.values.push_back(own(store.values))
        store.values = NULL
        self.data.push_back(own(store.data))
        store.data = NULL
        store.data_room = 0
        self.valid.push_back(own(<char *>store.valid))
        store.valid = NULL
        self.held.push_back(held)
        return 0

    cdef bint _is_null(self, Py_ssize_t i, Py_ssize_t row) noexcept:
        cdef const uint8_t *valid = <const uint8_t *>self.valid[i].get()
        return valid != NULL and not valid[row >> 3] >> (row & 7) & 1

    cdef list _objects(self, Py_ssize_t i):
        cdef Py_ssize_t row
        cdef list found = [None] * self.n_rows
        for row in range(self.n_rows):
            if not self._is_null(i, row):
                found[row] = self._object(i, row)
        return found

    cdef object _object(self, Py_ssize_t i, Py_ssize_t row):
        cdef Kind kind = self.held[i].kind
        cdef const char *p = self.values[i].get()
        cdef Py_ssize_t length = 0
        cdef object value
        if self.held[i].width:
            p += row * self.held[i].width
        else:
            length = (<int64_t *>p)[row + 1] - (<int64_t *>p)[row]
            p = self.data[i].get() + (<int64_t *>p)[row]
        value = value_object(kind, self.held[i].scale, p, length)
        if value is None:
            reason = "a year outside of 1 to 9999 is no datetime"
            raise _DecodeError(reason, row=self.first_row + row, column=self.names[i])
        return value

    cdef object _array(self, Py_ssize_t i):
        cdef Held held = self.held[i]
        dtype = _KINDS[<int>held.kind][2]
        if dtype is None:
            out = _np.empty(self.n_rows, object)
            out[:] = self._objects(i)
        elif held.kind == DATE:
            days = _view(self.values[i], 4 * self.n_rows, dtype)
            out = days.astype("M8[D]")
            if held.n_nulls:
                out[self._mask(i)] = _np.datetime64("NaT")
        else:
            return _view(self.values[i], held.width * self.n_rows, dtype)
        out.flags.writeable = False
        return out

    cdef int _export(self) except -1:
        """Describe the columns as Arrow has them, once; only bools are packed anew, into bits."""
        cdef shared_ptr[Batch] batch
        cdef Field field
        cdef Py_ssize_t i, row
        cdef char *bits
        cdef const char *flags
        if self.batch.get() != NULL:
            return 0
        batch = make_shared[Batch]()
        batch.get().length = self.n_rows
        for i in range(<Py_ssize_t>self.held.size()):
            form = _KINDS[<int>self.held[i].kind][1]
            if form is None:
                raise TypeError(
                    f"column {self.names[i]!r} was read as Decimal objects, which Arrow has not: "
                    "read it with decimals=Decimal128(scale)"
                )
            field = Field()
            field.name = (<str>self.names[i]).encode()
            field.format = form.format(precision=self.held[i].precision, scale=self.held[i].scale).encode()
            field.n_nulls = self.held[i].n_nulls
            field.buffers.push_back(self.valid[i])
            if self.held[i].kind == BOOL:
                bits = <char *>resize(NULL, self.n_rows // 8 + 1)
                if bits == NULL:
                    raise MemoryError
                field.buffers.push_back(own(bits))
                memset(bits, 0, self.n_rows // 8 + 1)
                flags = self.values[i].get()
                for row in range(self.n_rows):
                    bits[row >> 3] |= <char>((flags[row] != 0) << (row & 7))
            else:
                field.buffers.push_back(self.values[i])
                if self.held[i].width == 0:
                    field.buffers.push_back(self.data[i])
            batch.get().fields.push_back(field)
        self.batch = batch
        return 0


cdef char *_shrunk(char *memory, Py_ssize_t size) noexcept:
    """Give back what was not needed; where that fails the block stays as it was."""
    cdef char *smaller = <char *>resize(memory, size)
    return smaller if smaller != NULL else memory
