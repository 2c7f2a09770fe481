"""Symbols in memory: by id through an array, by names through a compiled hash."""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport Py_EQ, PyObject, PyObject_Hash
from cpython.unicode cimport PyUnicode_RichCompare
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object o)


# 128 MB of pointers at most, which the kernel backs only where ids are; ids beyond stay in the dict.
cdef enum:
    MAX_SLOTS = 1 << 24


cdef struct Entry:
    uint64_t hash
    PyObject* exchange
    PyObject* first
    PyObject* second  # NULL in the table of venues' own symbols
    PyObject* rank
    PyObject* symbol  # NULL: the entry is free


cdef inline uint64_t _mix(uint64_t seed, object text) except? 0:
    cdef uint64_t h = (seed ^ <uint64_t>PyObject_Hash(text)) * <uint64_t>0x9E3779B97F4A7C15
    return h ^ (h >> 32)


cdef inline bint _same(PyObject* a, object b) except -1:
    return a == <PyObject*>b or PyUnicode_RichCompare(<object>a, b, Py_EQ) is True


cdef object _text(object value, str name):
    # A subclass (StrEnum) may have its own hash and equality, which could run Python inside a look-up.
    if PyUnicode_CheckExact(value):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{name} must be a str, not {type(value).__name__}")


cdef object _number(object value):
    if PyLong_CheckExact(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    raise TypeError(f"id must be an int, not {type(value).__name__}")


cdef tuple _row(object symbol):
    """Read a symbol's attributes once: (symbol, id, exchange, base, quote, exchange_symbol, rank)."""
    number = _number(symbol.id)
    return (
        symbol,
        number,
        _text(symbol.exchange, "exchange"),
        _text(symbol.symbol_base, "symbol_base"),
        _text(symbol.symbol_quote, "symbol_quote"),
        _text(symbol.exchange_symbol, "exchange_symbol"),
        (bool(symbol.is_active), symbol.expiry is None, number),
    )


# No cycle can pass through symbols, and a collector that cleared `rows` would leave the pointers dangling.
@cython.final
@cython.no_gc
cdef class _Tables:
    """All look-up tables of one state; ``rows`` owns what the C arrays borrow."""

    cdef dict rows
    cdef PyObject** slots
    cdef Py_ssize_t n_slots
    cdef Entry* pairs
    cdef Entry* venues
    cdef uint64_t mask

    def __cinit__(self):
        self.rows = {}

    def __dealloc__(self):
        PyMem_Free(self.slots)
        PyMem_Free(self.pairs)
        PyMem_Free(self.venues)

    cdef int build(self, dict rows) except -1:
        """Fill these empty tables."""
        cdef Py_ssize_t top = 0
        for number in rows:
            if 0 <= number < MAX_SLOTS and number >= top:
                top = number + 1
        self.rows = rows
        self.grow_slots(top)
        self.make_entries(len(rows))
        for row in rows.values():
            self.index(row)
        return 0

    cdef int grow_slots(self, Py_ssize_t n) except -1:
        cdef PyObject** slots
        if n <= self.n_slots:
            return 0
        slots = <PyObject**>PyMem_Calloc(n, sizeof(PyObject*))
        if slots == NULL:
            raise MemoryError()
        if self.n_slots:
            memcpy(slots, self.slots, self.n_slots * sizeof(PyObject*))
        PyMem_Free(self.slots)
        self.slots = slots
        self.n_slots = n
        return 0

    cdef int make_entries(self, Py_ssize_t n_symbols) except -1:
        # At most half full (a quarter when new), so that a miss ends after a probe or two.
        cdef uint64_t size = 16
        while size < 4 * <uint64_t>n_symbols:
            size <<= 1
        self.pairs = <Entry*>PyMem_Calloc(size, sizeof(Entry))
        self.venues = <Entry*>PyMem_Calloc(size, sizeof(Entry))
        if self.pairs == NULL or self.venues == NULL:
            raise MemoryError()
        self.mask = size - 1
        return 0

    cdef bint has_room(self):
        return 2 * (<uint64_t>len(self.rows) + 1) <= self.mask + 1

    cdef int add(self, tuple row) except -1:
        """Add a row of a new id in place; there must be room."""
        number = row[1]
        cdef Py_ssize_t slot
        if 0 <= number < MAX_SLOTS:
            slot = number
            if slot >= self.n_slots:
                self.grow_slots(min(max(slot + 1, 2 * self.n_slots), MAX_SLOTS))
        self.rows[number] = row
        self.index(row)
        return 0

    cdef int index(self, tuple row) except -1:
        symbol, number, exchange, base, quote, venue, rank = row
        if 0 <= number < MAX_SLOTS:
            self.slots[<Py_ssize_t>number] = <PyObject*>symbol
        cdef Entry entry
        entry.exchange = <PyObject*>exchange
        entry.rank = <PyObject*>rank
        entry.symbol = <PyObject*>symbol
        cdef uint64_t seed = _mix(0, exchange)
        entry.first = <PyObject*>base
        entry.second = <PyObject*>quote
        entry.hash = _mix(_mix(seed, base), quote)
        self.insert(self.pairs, &entry)
        entry.first = <PyObject*>venue
        entry.second = NULL
        entry.hash = _mix(seed, venue)
        self.insert(self.venues, &entry)
        return 0

    cdef int insert(self, Entry* entries, Entry* new) except -1:
        cdef uint64_t i = new.hash & self.mask
        cdef Entry* entry = &entries[i]
        while entry.symbol != NULL:
            if (
                entry.hash == new.hash
                and _same(entry.first, <object>new.first)
                and (new.second == NULL or _same(entry.second, <object>new.second))
                and _same(entry.exchange, <object>new.exchange)
            ):
                if <object>new.rank > <object>entry.rank:
                    entry[0] = new[0]
                return 0
            i = (i + 1) & self.mask
            entry = &entries[i]
        entry[0] = new[0]
        return 0


@cython.final
@cython.no_gc
cdef class SymbolCache:
    """Symbols by id, by (exchange, base, quote) and by (exchange, venue's own symbol).

    Names match byte for byte. Of several symbols under one name: the active before the inactive, then the one
    without expiry, then the highest id. Not for use without the GIL.
    """

    cdef _Tables _tables
    cdef readonly unsigned long long hits
    cdef readonly unsigned long long misses

    def __cinit__(self):
        self._tables = _new_tables({})

    def load(self, symbols not None):
        """Replace all symbols at once; of several with one id the last counts.

        After an error the cache is as it was.
        """
        cdef dict rows = {}
        for symbol in symbols:
            row = _row(symbol)
            rows[row[1]] = row
        # The old tables die after the assignment, when their symbols' finalizers can no longer see them.
        _old = self._tables
        self._tables = _new_tables(rows)

    def put(self, symbol not None):
        """Add a symbol (amortised O(1)) or replace the one of its id, its old names with it (O(n))."""
        cdef tuple row = _row(symbol)
        cdef _Tables old = self._tables
        if row[1] not in old.rows and old.has_room():
            old.add(row)
            return
        cdef dict rows = old.rows.copy()
        rows[row[1]] = row
        self._tables = _new_tables(rows)

    def get(self, id not None):
        """Return the symbol of an id, or None."""
        cdef _Tables tables = self._tables
        cdef int overflow = 0
        cdef long long slot
        cdef PyObject* found
        if not PyLong_CheckExact(id):
            id = _number(id)
        slot = PyLong_AsLongLongAndOverflow(id, &overflow)
        if overflow == 0 and 0 <= slot < MAX_SLOTS:
            if slot < tables.n_slots:
                found = tables.slots[slot]
                if found != NULL:
                    self.hits += 1
                    return <object>found
        else:
            row = tables.rows.get(id)
            if row is not None:
                self.hits += 1
                return (<tuple>row)[0]
        self.misses += 1
        return None

    def find(self, exchange not None, base not None, quote not None):
        """Return the symbol of an exchange's pair, or None."""
        cdef _Tables tables = self._tables
        if not PyUnicode_CheckExact(exchange):
            exchange = _text(exchange, "exchange")
        if not PyUnicode_CheckExact(base):
            base = _text(base, "base")
        if not PyUnicode_CheckExact(quote):
            quote = _text(quote, "quote")
        cdef uint64_t h = _mix(_mix(_mix(0, exchange), base), quote)
        cdef uint64_t i = h & tables.mask
        cdef Entry* entry = &tables.pairs[i]
        while entry.symbol != NULL:
            if (
                entry.hash == h
                and _same(entry.first, base)
                and _same(entry.second, quote)
                and _same(entry.exchange, exchange)
            ):
                self.hits += 1
                return <object>entry.symbol
            i = (i + 1) & tables.mask
            entry = &tables.pairs[i]
        self.misses += 1
        return None

    def find_exchange_symbol(self, exchange not None, exchange_symbol not None):
        """Return the symbol that a venue calls so, or None."""
        cdef _Tables tables = self._tables
        if not PyUnicode_CheckExact(exchange):
            exchange = _text(exchange, "exchange")
        if not PyUnicode_CheckExact(exchange_symbol):
            exchange_symbol = _text(exchange_symbol, "exchange_symbol")
        cdef uint64_t h = _mix(_mix(0, exchange), exchange_symbol)
        cdef uint64_t i = h & tables.mask
        cdef Entry* entry = &tables.venues[i]
        while entry.symbol != NULL:
            if entry.hash == h and _same(entry.first, exchange_symbol) and _same(entry.exchange, exchange):
                self.hits += 1
                return <object>entry.symbol
            i = (i + 1) & tables.mask
            entry = &tables.venues[i]
        self.misses += 1
        return None

    def symbols(self):
        """Return a list of all symbols."""
        return [(<tuple>row)[0] for row in self._tables.rows.values()]

    @property
    def size(self):
        """The number of symbols."""
        return len(self._tables.rows)

    def stats(self):
        """Return hits, misses, size and hit_ratio (0.0 when nothing was asked)."""
        cdef unsigned long long asked = self.hits + self.misses
        return {
            "hits": self.hits,
            "misses": self.misses,
            "size": len(self._tables.rows),
            "hit_ratio": self.hits / <double>asked if asked else 0.0,
        }

    def reset_stats(self):
        """Set hits and misses to zero."""
        self.hits = 0
        self.misses = 0

    def __len__(self):
        return len(self._tables.rows)

    def __iter__(self):
        return iter(self.symbols())


cdef _Tables _new_tables(dict rows):
    cdef _Tables tables = _Tables.__new__(_Tables)
    tables.build(rows)
    return tables
