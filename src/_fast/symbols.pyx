# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""Symbols in memory: by id through an array, by names through a compiled hash.

``binding=False`` makes plain C methods, which the interpreter calls without an argument parser in between:
with Cython's own function type a look-up by id took as long as ``dict.get``.

freethreading_compatible stays off: a free-threaded interpreter turns the GIL back on when it imports this module.
"""

cimport cython
from cpython.dict cimport PyDict_Update
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from pgtick._fast.symbol_arrays cimport Counts, ids_of, own_ids, own_list, symbols_of
from pgtick._fast.symbol_tables cimport (
    Row, Tables, by_any_id, exact_int, exact_text, hash_pair, hash_venue, likely, new_row, new_tables, pair_entry,
    slot_of, venue_entry,
)

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object o)


@cython.final
@cython.no_gc
cdef class SymbolCache:
    """Symbols by id, by (exchange, base, quote) and by (exchange, venue's own symbol).

    Names match byte for byte. Of several symbols under one name: the active before the inactive, then the one
    without expiry, then the highest id. ``cache[id]`` is ``get`` that raises KeyError, and the fastest way. Iterating
    gives symbols, ``in`` asks for an id. Beside the symbols themselves it takes 190 to 280 bytes for each,
    and 8 for every gap below the highest id (below 2^24; ids beyond are found through a dict).

    Threads may share it: a look-up, of a whole array too, sees one state, either before or after a ``load`` or
    ``put``; a ``put`` is lost only to a ``load`` that ends after it; counters are exact. That rests on the GIL, which
    a free-threaded interpreter turns back on when it imports this module.
    """

    cdef Tables _tables
    cdef readonly unsigned long long hits
    cdef readonly unsigned long long misses

    def __cinit__(self):
        self._tables = new_tables({})

    def load(self, symbols not None, /):
        """Replace all symbols at once; of several with one id the last counts.

        After an error the cache is as it was.
        """
        cdef dict rows = {}
        for symbol in symbols:
            row = new_row(symbol)
            rows[row.id] = row
        # The old tables die after the assignment, when their symbols' finalizers can no longer see them.
        _old = self._tables
        self._tables = new_tables(rows)

    def put(self, symbol not None, /):
        """Add a symbol (amortised O(1)) or replace the one of its id, its old names with it (O(n)).

        After an error the cache is as it was.
        """
        cdef Row row = new_row(symbol)
        # Made first: a new container may start a collection, and with it Python code that changes this cache.
        cdef dict rows = {}
        cdef Tables old = self._tables
        if row.id not in old.rows and old.has_room():
            old.add(row)
            return
        PyDict_Update(rows, old.rows)
        rows[row.id] = row
        self._tables = new_tables(rows)

    def get(self, id, /):
        """Return the symbol of an id, or None."""
        cdef PyObject* found = slot_of(&self._tables.arrays, id)
        if likely(found != NULL):
            self.hits += 1
            return <object>found
        return self.get_any(id)

    def __getitem__(self, id):
        cdef PyObject* found = slot_of(&self._tables.arrays, id)
        if likely(found != NULL):
            self.hits += 1
            return <object>found
        symbol = self.get_any(id)
        if symbol is None:
            raise KeyError(id)
        return symbol

    def __contains__(self, id):
        return self.get(id) is not None

    cdef object get_any(self, object id):
        cdef PyObject* found = by_any_id(self._tables, id)
        self.count(found != NULL, found == NULL)
        return None if found == NULL else <object>found

    cdef void count(self, Py_ssize_t n_hits, Py_ssize_t n_misses) noexcept:
        self.hits += n_hits
        self.misses += n_misses

    def find(self, exchange, base, quote):
        """Return the symbol of an exchange's pair, or None."""
        if not likely(PyUnicode_CheckExact(exchange) and PyUnicode_CheckExact(base) and PyUnicode_CheckExact(quote)):
            return self.find(exact_text(exchange, "exchange"), exact_text(base, "base"), exact_text(quote, "quote"))
        cdef uint64_t h = hash_pair(exchange, base, quote)
        cdef PyObject* row = pair_entry(&self._tables.arrays, h, exchange, base, quote).row
        if row == NULL:
            self.misses += 1
            return None
        self.hits += 1
        return (<Row>row).symbol

    def find_exchange_symbol(self, exchange, exchange_symbol):
        """Return the symbol that a venue calls so, or None."""
        if not likely(PyUnicode_CheckExact(exchange) and PyUnicode_CheckExact(exchange_symbol)):
            return self.find_exchange_symbol(
                exact_text(exchange, "exchange"), exact_text(exchange_symbol, "exchange_symbol")
            )
        cdef uint64_t h = hash_venue(exchange, exchange_symbol)
        cdef PyObject* row = venue_entry(&self._tables.arrays, h, exchange, exchange_symbol).row
        if row == NULL:
            self.misses += 1
            return None
        self.hits += 1
        return (<Row>row).symbol

    def find_ids(self, exchange, exchange_symbols, *, bint require=False):
        """Return the ids of an array of one exchange's own symbols, as a NumPy array of int32.

        Takes a list, an array of NumPy (text, objects) or Arrow, a column of pandas, or anything else that iterates
        over strs. An unknown name becomes 0, which is no id in the database; with ``require`` it is a LookupError
        that tells the first one and its index. An id that does not go into int4, or is 0, is an OverflowError.
        """
        from numpy import frombuffer  # here, so that importing pgtick does not import NumPy

        if not PyUnicode_CheckExact(exchange):
            exchange = exact_text(exchange, "exchange")
        cdef Counts counts = Counts(0, 0)
        names = own_list(exchange_symbols, "exchange_symbols")
        try:
            return frombuffer(ids_of(self._tables, exchange, names, require, &counts), "int32")
        finally:
            self.count(counts.hits, counts.misses)

    def get_many(self, ids, *, bint require=False):
        """Return a list of the symbols of an array of ids, None for those unknown.

        Takes integers in anything with the buffer protocol (NumPy, ``array``), in a list, or anything else that
        iterates over ints. With ``require`` an unknown id is a LookupError that tells the first one and its index.
        """
        cdef Counts counts = Counts(0, 0)
        ids = own_ids(ids)
        try:
            return symbols_of(self._tables, ids, require, &counts)
        finally:
            self.count(counts.hits, counts.misses)

    def generation(self, id, /):
        """Return which listing of its (exchange, venue's own symbol) the id is: 1 for the first, 2, ...

        That is the number of symbols in this cache under the same name, inactive ones too, whose id is not higher:
        a venue's ticker that is listed again gets a new, higher id. Right where the cache holds all symbols of the
        database, which are never deleted; a symbol that is renamed leaves its old name's count. KeyError for an
        unknown id; not counted as a look-up.
        """
        cdef Row row = self.row_of(id)
        cdef PyObject* other = self.namesakes(row)
        cdef Py_ssize_t n = 0
        while other != NULL:
            n += (<Row>other).id <= row.id
            other = (<Row>other).namesake
        return n

    def is_current(self, id, /):
        """Return whether ``find_exchange_symbol`` of the id's own exchange and name gives this id.

        False: the ticker was listed again (or this one switched off while another is active), so what is held under
        this id is of another generation. KeyError for an unknown id; not counted as a look-up.
        """
        cdef Row row = self.row_of(id)
        return self.namesakes(row) == <PyObject*>row

    cdef Row row_of(self, object id):
        row = self._tables.rows.get(exact_int(id))
        if row is None:
            raise KeyError(id)
        return row

    cdef PyObject* namesakes(self, Row row) noexcept:
        cdef uint64_t h = hash_venue(row.exchange, row.venue)
        return venue_entry(&self._tables.arrays, h, row.exchange, row.venue).row

    def symbols(self):
        """Return a list of all symbols."""
        found = []
        for row in self._tables.rows.values():
            found.append((<Row>row).symbol)
        return found

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
