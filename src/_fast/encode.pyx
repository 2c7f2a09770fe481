"""Rows to PostgreSQL's COPY BINARY: one growing C buffer, no object per row.

A field is encoded, or a rule is broken: the rule travels as a small int, so that a bad row costs little; its
bytes are dropped and the rows around it stay. Whatever else is raised (no memory, a row's own property)
passes through; the encoder keeps no state of a batch, so it can be used again at once.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport uint8_t

from pgtick._fast.batch cimport MAX_KEYS, EncodedBatch
from pgtick._fast.columns cimport PY_SSIZE_T_MAX, Columns, open_columns
from pgtick._fast.hashing cimport number_of, xxh64
from pgtick._fast.rules cimport IS_NULL, MISSING, Clock, Plan, refusal
from pgtick._fast.times cimport set_clock
from pgtick._fast.values cimport make_plan
from pgtick._fast.wire cimport Buffer, put16, put32, reserve

from operator import attrgetter as _attrgetter

from pgtick._fast.decode import CopyDecoder as _CopyDecoder
from pgtick._fast.result import READABLE_TYPES as _READABLE_TYPES
from pgtick.errors import RowError

cdef extern from *:
    """
    #include <structmember.h>

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
    Py_ssize_t pgtick_slot(PyObject *cls, PyObject *descriptor) noexcept
    PyObject *pgtick_type(object) noexcept

cdef extern from "Python.h":
    bint PyTuple_Check(object) noexcept
    bint PyDict_Check(object) noexcept
    PyObject *PyDict_GetItemWithError(object, object) except? NULL

cdef dict _OIDS = {name: oid for oid, name in _READABLE_TYPES.items()}


def content_number(data: bytes) -> int:
    """Return the negative 63-bit number that stands for the content."""
    return number_of(xxh64(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)))


@cython.final
cdef class _Layout:
    """Where a class of rows keeps its fields: slot offsets, -1 for what only getattr knows."""

    cdef object cls
    cdef Py_ssize_t *offsets

    def __cinit__(self, cls, tuple names):
        cdef Py_ssize_t i
        self.cls = cls
        self.offsets = <Py_ssize_t *>PyMem_RawMalloc(max(len(names), 1) * sizeof(Py_ssize_t))
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
        PyMem_RawFree(self.offsets)


@cython.final
cdef class RowEncoder:
    """Encodes rows of one table: Structs or other objects by attribute, tuples in wire order, dicts by name.

    A content key that is None is made from the row: the row's other fields as they lie on the wire, one after
    the other, are hashed (see content_number). An int8 key is that number, so the same content at the same
    instant is a duplicate; a text key is its decimal text, and the n-th row (n > 1) of identical content in
    one batch hashes with n appended as four bytes: two identical trades are two rows, and a batch that is
    encoded again has the same keys.
    """

    cdef str name
    cdef tuple columns
    cdef tuple names
    cdef frozenset ignored
    cdef dict layouts
    cdef _Layout last_layout
    cdef Plan *plans
    cdef Py_ssize_t n

    def __cinit__(self, table):
        cdef Py_ssize_t i
        self.name = table.name
        self.columns = tuple(table.columns)
        self.names = tuple(map(_attrgetter("name"), self.columns))
        self.ignored = frozenset(getattr(table, "read_columns", ())) - frozenset(self.names)
        self.layouts = {}
        self.n = len(self.columns)
        self.plans = <Plan *>PyMem_RawCalloc(max(self.n, 1), sizeof(Plan))
        if self.plans == NULL:
            raise MemoryError
        for i, column in enumerate(self.columns):
            try:
                make_plan(&self.plans[i], column, column.name == table.time_column)
            except ValueError as error:
                raise ValueError(f"{self.name}.{column.name}: {error}") from None
        if sum(map(bool, map(_attrgetter("content_key"), self.columns))) > MAX_KEYS:
            raise ValueError(f"{self.name}: more than {MAX_KEYS} content keys")

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.plans != NULL:
            for i in range(self.n):
                PyMem_RawFree(self.plans[i].allowed)
        PyMem_RawFree(self.plans)

    def encode(self, rows, *, time_unit=None):
        """Encode all rows that obey the rules; the others become the batch's errors.

        ``time_unit``: s, ms, us or ns, what integer times count; without it they are refused.
        """
        cdef EncodedBatch out = EncodedBatch.__new__(EncodedBatch)
        self._extend(out, rows, 0, PY_SSIZE_T_MAX, time_unit)
        return out

    def append(self, EncodedBatch batch not None, object row, Py_ssize_t index, /, *, time_unit=None):
        """Encode one row onto the end of the batch, ``index`` its origin; return whether it was taken.

        A refused row becomes one of the batch's errors. Identical contents in text keys are counted through the
        whole batch. Whatever a row raises passes, and the batch is as it was. While a row is encoded, its own
        properties cannot append to the same batch: RuntimeError.
        """
        cdef Clock clock
        set_clock(&clock, time_unit)
        return self._append(batch, index, row, &clock)

    def extend(self, EncodedBatch batch not None, rows, Py_ssize_t index, Py_ssize_t limit, /, *, time_unit=None):
        """Append rows from an iterator, with the origins ``index`` and up; return how many were taken from it.

        It ends after ``limit`` rows, refused ones included, and the iterator gives what comes next to the next
        call. When the iterator raises, the rows before stay in the batch: n_rows and the number of errors have
        grown by as many as were taken. A row that raises was taken too, and is in neither.
        """
        return self._extend(batch, rows, index, limit, time_unit)

    cdef Py_ssize_t _extend(
        self, EncodedBatch out, object rows, Py_ssize_t index, Py_ssize_t limit, object time_unit
    ) except -1:
        cdef Clock clock
        cdef Py_ssize_t taken = 0
        set_clock(&clock, time_unit)
        if index > 0:
            limit = min(limit, PY_SSIZE_T_MAX - index)
        if limit <= 0:
            return 0
        for row in rows:
            self._append(out, index + taken, row, &clock)
            taken += 1
            if taken == limit:
                break
        return taken

    cdef inline bint _append(self, EncodedBatch out, Py_ssize_t index, object row, Clock *clock) except -1:
        """Append one row, or its error. Whatever is raised, the batch ends behind its last whole row."""
        cdef _Layout layout = None
        cdef bint taken
        out.claim()
        try:
            if not (PyTuple_Check(row) or PyDict_Check(row)):
                # A reference of its own: the row's properties can encode too, and replace the last one.
                layout = self.last_layout
                if layout is None or <PyObject *>layout.cls != pgtick_type(row):
                    layout = self.last_layout = self._layout(type(row))
            clock.day = 0
            taken = self._row(out, index, row, layout, clock)
        finally:
            out.busy = False
            out.buffer.size = out.starts[out.n]
        return taken

    def encode_columns(self, columns, *, time_unit=None, scales=None, masks=None):
        """Encode columns: the bytes, days, keys and errors that their rows would give.

        ``columns``: {name: NumPy or Arrow array, list, or a value for all rows}, or an Arrow table or stream.
        ``scales``: {name: s} where integers stand for value x 10^-s. ``masks``: {name: bools, true where NULL}.
        What is wrong with a whole column (its type, its length, a name) is a ValidationError before anything is
        encoded.
        """
        cdef Columns opened = open_columns(
            self.name, self.columns, self.ignored, self.plans, columns, time_unit, scales, masks
        )
        return opened.encode(PY_SSIZE_T_MAX)

    def column_batches(self, columns, n_rows, *, time_unit=None, scales=None, masks=None, refused=None):
        """Yield what encode_columns gives in batches of up to ``n_rows`` rows; a stream is read as far as needed.

        Indices, and the counts of identical contents in text keys, run on from batch to batch. ``refused``: a list
        that gets of each refused row its values as ``values`` gives them, and {name: value} of those that do not fit.
        """
        if n_rows < 1:
            raise ValueError(f"n_rows must be 1 or more, not {n_rows}")
        cdef Columns opened = open_columns(
            self.name, self.columns, self.ignored, self.plans, columns, time_unit, scales, masks
        )
        while True:
            if refused is not None:
                opened.kept = EncodedBatch.__new__(EncodedBatch)
                opened.unfit = []
            batch = opened.encode(n_rows)
            if refused is not None and opened.kept.n:
                refused += zip(self._values(opened.kept, 0, opened.kept.n), opened.unfit)
            if batch.n_rows or batch.errors:
                yield batch
            else:
                return

    def canonical(self, row, *, time_unit=None):
        """Return the row's values in wire order as they will be read back; raises RowError with index 0."""
        cdef EncodedBatch out = self.encode((row,), time_unit=time_unit)
        if out.errors:
            raise out.errors[0]
        return self.values(out, 0)

    def values(self, EncodedBatch batch not None, Py_ssize_t row):
        """Return the values of a batch's row in wire order as they will be read back."""
        if not 0 <= row < batch.n:
            raise IndexError(f"no row {row} in a batch of {batch.n}")
        return self._values(batch, row, row + 1)[0]

    cdef list _values(self, EncodedBatch batch, Py_ssize_t start, Py_ssize_t stop):
        layout = []
        for column in self.columns:
            layout.append((column.name, _OIDS[column.type], ("decimal",)))
        decoder = _CopyDecoder(layout)
        for chunk in batch.chunks(start, stop):
            decoder.feed(chunk)
        decoder.finish()
        result = decoder.take()
        return list(zip(*map(result.objects, self.names)))

    cdef _Layout _layout(self, object cls):
        cdef _Layout layout = self.layouts.get(cls)
        if layout is None:
            # Classes made on the fly must not stay alive here without end.
            if len(self.layouts) >= 64:
                self.layouts.clear()
            layout = self.layouts[cls] = _Layout(cls, self.names)
        return layout

    cdef bint _row(self, EncodedBatch out, Py_ssize_t index, object row, _Layout layout, Clock *clock) except -1:
        """Encode one row. Returns whether it was taken; else its bytes are to be cut off again."""
        cdef Buffer *buffer = &out.buffer
        cdef Py_ssize_t start = buffer.size
        cdef Py_ssize_t i, found = 0, n_keys = 0
        cdef Py_ssize_t[MAX_KEYS] keys, key_starts
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
        reserve(buffer, 2 + 32 * self.n)
        put16(buffer.data + buffer.size, <int>self.n)
        buffer.size += 2
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
                        refused = refusal(self.name, index, self.columns[i], row, MISSING)
                        refused.__cause__ = error
                        out.errors.append(refused)
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
            if value is not None:
                broken = plan.put(buffer, plan, value, clock)
            elif plan.content_key:
                keys[n_keys] = i
                key_starts[n_keys] = buffer.size
                n_keys += 1
                continue
            elif plan.nullable:
                broken = 0
                reserve(buffer, 4)
                put32(buffer.data + buffer.size, 0xFFFFFFFF)
                buffer.size += 4
            else:
                broken = IS_NULL
            if broken:
                out.errors.append(refusal(self.name, index, self.columns[i], value, broken))
                return False
        if mode == 2 and found != len(row) and not self._known_keys(out, index, row):
            return False
        # Behind the keys nothing may fail: a twin that was counted must be there.
        out.reserve_row()
        if clock.day:
            out.add_day(clock.day)
        if n_keys:
            out.insert_keys(self.plans, start + 2, keys, key_starts, n_keys)
        out.add_row(index)
        return True

    cdef bint _known_keys(self, EncodedBatch out, Py_ssize_t index, object row) except -1:
        for key in row:
            if key not in self.names and key not in self.ignored:
                rule = "must be a column of the table"
                out.errors.append(RowError(self.name, index, str(key), row[key], rule))
                return False
        return True
