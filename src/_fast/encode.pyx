"""Rows to PostgreSQL's COPY BINARY: one growing C buffer, no object per row.

The promise: the bytes of a number are the bytes ``numeric_send('...'::numeric)`` gives for its decimal text.
A field is encoded, or a rule is broken: the rule travels as a small int, so that a bad row costs little; its
bytes are dropped and the rows around it stay. Whatever else is raised (no memory, a row's own property)
passes through; the encoder keeps no state of a batch, so it can be used again at once.

The parts are included, not imported: they share one buffer and are compiled as one unit, so that a field
costs no call across modules.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy, memmove
cimport cpython.datetime as dt

import struct
import time
from datetime import datetime as _datetime, timedelta as _timedelta, timezone as _timezone
from decimal import Decimal as _Decimal

from pgtick.errors import RowError
from pgtick.models import EARLIEST as _FIRST_INSTANT

cdef extern from *:
    """
    #include <charconv>
    #include <structmember.h>

    static inline Py_ssize_t pgtick_shortest(double x, char *out, Py_ssize_t room) {
        return std::to_chars(out, out + room, x, std::chars_format::scientific).ptr - out;
    }

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
    Py_ssize_t pgtick_shortest(double x, char *out, Py_ssize_t room) noexcept
    Py_ssize_t pgtick_slot(PyObject *cls, PyObject *descriptor) noexcept
    PyObject *pgtick_type(object) noexcept

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyUnicode_Compare(object left, object right) except? -1
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    bint PyUnicode_Check(object) noexcept
    bint PyBytes_Check(object) noexcept
    bint PyFloat_Check(object) noexcept
    bint PyLong_Check(object) noexcept
    bint PyBool_Check(object) noexcept
    bint PyIndex_Check(object) noexcept
    bint PyTuple_Check(object) noexcept
    bint PyDict_Check(object) noexcept
    object PyNumber_Index(object)
    double PyFloat_AS_DOUBLE(object) noexcept
    PyObject *PyDict_GetItemWithError(object, object) except? NULL

dt.import_datetime()

include "encode_plan.pxi"
include "encode_xxh64.pxi"
include "encode_batch.pxi"
include "encode_numeric.pxi"
include "encode_values.pxi"


@cython.final
cdef class _Layout:
    """Where a class of rows keeps its fields: slot offsets, -1 for what only getattr knows."""

    cdef Py_ssize_t *offsets

    def __cinit__(self, cls, tuple names):
        cdef Py_ssize_t i
        self.offsets = <Py_ssize_t *>PyMem_Malloc(max(len(names), 1) * sizeof(Py_ssize_t))
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
        PyMem_Free(self.offsets)


@cython.final
cdef class RowEncoder:
    """Encodes rows of one table: Structs or other objects by attribute, tuples in wire order, dicts by name.

    A content key that is None is made from the row: the row's other fields as they lie on the wire, one after
    the other, are hashed (see content_number). An int8 key is that number, so the same content at the same
    instant is a duplicate; a text key is its decimal text, and the n-th row (n > 1) of identical content in
    one batch hashes with n appended as four bytes: two identical trades are two rows, and a batch that is
    encoded again has the same keys.
    """

    cdef object table
    cdef str name
    cdef tuple columns
    cdef tuple names
    cdef tuple rules
    cdef frozenset ignored
    cdef dict layouts
    cdef Plan *plans
    cdef Py_ssize_t n

    def __cinit__(self, table):
        cdef Py_ssize_t i
        self.table = table
        self.name = table.name
        self.columns = tuple(table.columns)
        self.names = tuple([column.name for column in self.columns])
        self.ignored = frozenset(getattr(table, "read_columns", ())) - frozenset(self.names)
        self.layouts = {}
        self.n = len(self.columns)
        self.plans = <Plan *>PyMem_Calloc(max(self.n, 1), sizeof(Plan))
        if self.plans == NULL:
            raise MemoryError
        rules = []
        for i in range(self.n):
            column = self.columns[i]
            self.plans[i].kind = <Kind><int>_KINDS[column.type]
            self.plans[i].nullable = column.nullable
            self.plans[i].content_key = column.content_key
            self.plans[i].is_time = column.name == table.time_column
            self.plans[i].max_ahead = column.max_ahead // _MICROSECOND
            rule = column.rule
            if rule is None or isinstance(rule, tuple):
                rules.append(rule)
            elif rule in ("> 0", ">= 0"):
                self.plans[i].sign_rule = 1 if rule == "> 0" else 2
                rules.append(None)
            else:
                raise ValueError(f"{self.name}.{column.name}: no such rule: {rule!r}")
        self.rules = tuple(rules)
        if sum([bool(column.content_key) for column in self.columns]) > 8:
            raise ValueError(f"{self.name}: more than 8 content keys")

    def __dealloc__(self):
        PyMem_Free(self.plans)

    def encode(self, rows, *, time_unit=None):
        """Encode all rows that obey the rules; the others become the batch's errors.

        ``time_unit``: s, ms, us or ns, what integer times count; without it they are refused.
        """
        cdef EncodedBatch out = EncodedBatch.__new__(EncodedBatch)
        cdef Clock clock
        cdef Py_ssize_t index = 0
        cdef int64_t day = 0, last_day = 0
        cdef _Layout layout = None
        cdef object cls = None
        cdef dict seen = {}
        self._set_clock(&clock, time_unit)
        for row in rows:
            if not (PyTuple_Check(row) or PyDict_Check(row)) and <PyObject *>cls != pgtick_type(row):
                cls = type(row)
                layout = self._layout(cls)
            day = 0
            if self._row(out, index, row, layout, &clock, seen, &day) and day and day != last_day:
                out.days.add(day)
                last_day = day
            index += 1
        return out

    def canonical(self, row, *, time_unit=None):
        """Return the row's values in wire order as they will be read back; raises RowError with index 0."""
        cdef EncodedBatch out = self.encode((row,), time_unit=time_unit)
        cdef const char *p
        cdef Py_ssize_t i
        cdef int32_t length
        if out.errors:
            raise out.errors[0]
        values = []
        p = out.data + 2
        for i in range(self.n):
            length = int.from_bytes(p[:4], "big", signed=True)
            p += 4
            if length < 0:
                values.append(None)
                continue
            values.append(_decode(self.plans[i].kind, p[:length]))
            p += length
        return tuple(values)

    cdef int _set_clock(self, Clock *clock, object time_unit) except -1:
        clock.now = time.time_ns() // 1000 - _EPOCH_UNIX
        clock.multiply = 0
        clock.divide = 1
        if time_unit is not None:
            if time_unit not in _UNITS:
                raise ValueError(f"time_unit is s, ms, us or ns, not {time_unit!r}")
            clock.multiply, clock.divide = _UNITS[time_unit]
        return 0

    cdef _Layout _layout(self, object cls):
        cdef _Layout layout = self.layouts.get(cls)
        if layout is None:
            # Classes made on the fly must not stay alive here without end.
            if len(self.layouts) >= 64:
                self.layouts.clear()
            layout = self.layouts[cls] = _Layout(cls, self.names)
        return layout

    cdef int _refuse(
        self, EncodedBatch out, Py_ssize_t index, Py_ssize_t i, object value, int broken
    ) except -1:
        column = self.columns[i]
        if broken == NOT_ALLOWED:
            rule = f"must be one of {', '.join(column.rule)}"
        elif broken == OUT_OF_WINDOW:
            rule = f"must lie between 2009-01-01 and now + {column.max_ahead.days} d"
        else:
            rule = _RULES[broken]
        out.errors.append(RowError(self.name, index, column.name, value, rule))
        return 0

    cdef bint _row(
        self,
        EncodedBatch out,
        Py_ssize_t index,
        object row,
        _Layout layout,
        Clock *clock,
        dict seen,
        int64_t *day,
    ) except -1:
        """Encode one row. Returns whether it was taken; else nothing of it is left but its error."""
        cdef Py_ssize_t start = out.size
        cdef Py_ssize_t i, found = 0, n_keys = 0
        cdef Py_ssize_t[8] keys, key_starts
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
        out.reserve(2 + 32 * self.n)
        _put16(out.data + out.size, <int>self.n)
        out.size += 2
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
                        refused = RowError(self.name, index, self.names[i], row, _RULES[MISSING])
                        refused.__cause__ = error
                        out.errors.append(refused)
                        out.size = start
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
            if value is None:
                if plan.content_key:
                    keys[n_keys] = i
                    key_starts[n_keys] = out.size
                    n_keys += 1
                    continue
                if not plan.nullable:
                    self._refuse(out, index, i, value, IS_NULL)
                    out.size = start
                    return False
                out.reserve(4)
                _put32(out.data + out.size, 0xFFFFFFFF)
                out.size += 4
                continue
            if plan.kind == NUMERIC:
                broken = _to_numeric(out, plan, value)
            elif plan.kind == TEXT:
                broken = _to_text(out, self.rules[i], value)
            elif plan.kind == TIMESTAMPTZ:
                broken = _to_time(out, plan, value, clock, day)
            elif plan.kind == FLOAT8:
                broken = _to_double(out, plan, value)
            elif plan.kind == BOOL:
                broken = OK
                if value is True or value is False:
                    out.reserve(5)
                    _put32(out.data + out.size, 1)
                    out.data[out.size + 4] = <char>(value is True)
                    out.size += 5
                else:
                    broken = NOT_BOOL
            else:
                broken = _to_int(out, plan, value)
            if broken:
                self._refuse(out, index, i, value, broken)
                out.size = start
                return False
        if mode == 2 and found != len(row) and not self._known_keys(out, index, row):
            out.size = start
            return False
        if n_keys:
            self._content_keys(out, start + 2, keys, key_starts, n_keys, seen)
        out.add_row(index)
        return True

    cdef bint _known_keys(self, EncodedBatch out, Py_ssize_t index, object row) except -1:
        for key in row:
            if key not in self.names and key not in self.ignored:
                rule = "must be a column of the table"
                out.errors.append(RowError(self.name, index, str(key), row[key], rule))
                return False
        return True

    cdef int _content_keys(
        self,
        EncodedBatch out,
        Py_ssize_t start,
        Py_ssize_t *keys,
        Py_ssize_t *key_starts,
        Py_ssize_t n,
        dict seen,
    ) except -1:
        """Insert the content keys into the row, of which all other fields are there."""
        cdef uint64_t plain = _xxh64(<const uint8_t *>out.data + start, out.size - start)
        cdef Py_ssize_t i, at, length
        cdef bint text = False
        cdef char[24] field
        for i in range(n):
            text = text or self.plans[keys[i]].kind == TEXT
        cdef uint64_t counted = plain
        if text:
            occurrence = seen.get(plain, 0) + 1
            seen[plain] = occurrence
            if occurrence > 1:
                out.reserve(4)
                _put32(out.data + out.size, <uint32_t>occurrence)
                counted = _xxh64(<const uint8_t *>out.data + start, out.size + 4 - start)
        for i in range(n - 1, -1, -1):
            if self.plans[keys[i]].kind == TEXT:
                length = snprintf(field, 24, "%lld", <long long>_content_number(counted))
            else:
                _put64(field, <uint64_t>_content_number(plain))
                length = 8
            at = key_starts[i]
            out.reserve(4 + length)
            memmove(out.data + at + 4 + length, out.data + at, out.size - at)
            _put32(out.data + at, <uint32_t>length)
            memcpy(out.data + at + 4, field, length)
            out.size += 4 + length
        return 0
