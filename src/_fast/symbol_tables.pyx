"""The tables of a SymbolCache: rows, the array by id, the hashes by names."""

cimport cython
from cpython.bool cimport PyBool_Check
from cpython.long cimport PyLong_Check, PyLong_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object o)


# Neither of these runs Python code of a subclass (StrEnum has its own hash, another may have its own __class__).
cdef object exact_text(object value, str name):
    if PyUnicode_CheckExact(value):
        return value
    if PyUnicode_Check(value):
        return str.__str__(value)
    raise TypeError(f"{name} must be a str, not {type(value).__name__}")


cdef object exact_int(object value):
    if PyLong_CheckExact(value):
        return value
    if PyLong_Check(value) and not PyBool_Check(value):
        return int.__int__(value)
    raise TypeError(f"id must be an int, not {type(value).__name__}")


# no_gc counts only where the body is. No cycle can pass through symbols, and a collector that cleared ``rows`` would
# leave the pointers dangling; the allocation of a tracked object may run finalizers, and so other threads.
@cython.no_gc
cdef class Row:
    """A symbol with its attributes, read once; in an order that keeps what one look-up reads close together."""


cdef bint _beats(Row row, Row other) noexcept:
    if row.rank != other.rank:
        return row.rank > other.rank
    return row.id > other.id


cdef Row new_row(object symbol):
    cdef Row row = Row.__new__(Row)
    row.symbol = symbol
    row.id = exact_int(symbol.id)
    row.exchange = exact_text(symbol.exchange, "exchange")
    row.base = exact_text(symbol.symbol_base, "symbol_base")
    row.quote = exact_text(symbol.symbol_quote, "symbol_quote")
    row.venue = exact_text(symbol.exchange_symbol, "exchange_symbol")
    row.rank = 2 * bool(symbol.is_active) + (symbol.expiry is None)
    row.int4 = row.id if -(2**31) <= row.id < 2**31 else 0
    return row


@cython.no_gc
cdef class Tables:
    """All look-up tables of one state; ``rows`` owns what the C arrays borrow."""

    def __dealloc__(self):
        PyMem_Free(self.arrays.slots)
        PyMem_Free(self.arrays.pairs)
        PyMem_Free(self.arrays.venues)

    cdef int build(self, dict rows) except -1:
        """Fill these empty tables; what can fail comes first, since the rows may belong to living tables too."""
        cdef size_t top = 0
        for number in rows:
            if 0 <= number < MAX_SLOTS and number >= top:
                top = number + 1
        # At most half full, so that a miss ends after a probe or two.
        cdef uint64_t size = 16
        while size < 2 * (<uint64_t>len(rows) + 1):
            size <<= 1
        self.rows = rows
        self.grow_slots(top)
        self.arrays.pairs = <Entry*>PyMem_Calloc(size, sizeof(Entry))
        self.arrays.venues = <Entry*>PyMem_Calloc(size, sizeof(Entry))
        if self.arrays.pairs == NULL or self.arrays.venues == NULL:
            raise MemoryError()
        self.arrays.mask = size - 1
        for row in rows.values():
            self.index(row)
        return 0

    cdef int grow_slots(self, size_t n) except -1:
        cdef PyObject** slots
        if n <= self.arrays.n_slots:
            return 0
        slots = <PyObject**>PyMem_Calloc(n, sizeof(PyObject*))
        if slots == NULL:
            raise MemoryError()
        if self.arrays.n_slots:
            memcpy(slots, self.arrays.slots, self.arrays.n_slots * sizeof(PyObject*))
        PyMem_Free(self.arrays.slots)
        self.arrays.slots = slots
        self.arrays.n_slots = n
        return 0

    cdef bint has_room(self) noexcept:
        return 2 * (<uint64_t>len(self.rows) + 1) <= self.arrays.mask + 1

    cdef int add(self, Row row) except -1:
        """Add a row of a new id in place; there must be room."""
        cdef size_t slot
        if 0 <= row.id < MAX_SLOTS:
            slot = row.id
            if slot >= self.arrays.n_slots:
                self.grow_slots(min(max(slot + 1, 2 * self.arrays.n_slots), <size_t>MAX_SLOTS))
        self.rows[row.id] = row
        self.index(row)
        return 0

    cdef void index(self, Row row) noexcept:
        cdef Py_ssize_t slot = pgtick_small(row.id)
        if 0 <= slot < <Py_ssize_t>self.arrays.n_slots:
            self.arrays.slots[slot] = <PyObject*>row.symbol
        cdef uint64_t h = hash_pair(row.exchange, row.base, row.quote)
        cdef Entry* entry = pair_entry(&self.arrays, h, row.exchange, row.base, row.quote)
        if entry.row == NULL or _beats(row, <Row>entry.row):
            entry.hash = h
            entry.row = <PyObject*>row
        h = hash_venue(row.exchange, row.venue)
        entry = venue_entry(&self.arrays, h, row.exchange, row.venue)
        row.namesake = entry.row
        if entry.row == NULL or _beats(row, <Row>entry.row):
            entry.hash = h
            entry.row = <PyObject*>row
        else:
            row.namesake = (<Row>entry.row).namesake
            (<Row>entry.row).namesake = <PyObject*>row


cdef Tables new_tables(dict rows):
    cdef Tables tables = Tables.__new__(Tables)
    tables.build(rows)
    return tables

cdef PyObject* by_any_id(Tables tables, object id) except? NULL:
    row = tables.rows.get(exact_int(id))
    if row is None:
        return NULL
    return <PyObject*>(<Row>row).symbol
