"""The tables of a SymbolCache: rows, the array by id, the hashes by names. Part of symbols.pyx."""

cdef enum:
    # 128 MB of pointers at most, which the kernel backs only where ids are; ids beyond stay in the dict.
    MAX_SLOTS = 1 << 24


cdef struct Entry:
    uint64_t hash
    PyObject* row  # NULL: the entry is free


# A struct, so that a look-up reads it through a pointer: passing the _Tables on would count a reference.
cdef struct Arrays:
    PyObject** slots
    size_t n_slots
    Entry* pairs
    Entry* venues
    uint64_t mask


# Odd numbers: as many hashes as there were, and (a, b) is not (b, a). str hashes are random enough as they are.
cdef inline uint64_t _hash_venue(object exchange, object name) noexcept:
    return pgtick_hash(exchange) * <uint64_t>0x9E3779B97F4A7C15 + pgtick_hash(name)


cdef inline uint64_t _hash_pair(object exchange, object base, object quote) noexcept:
    return _hash_venue(exchange, base) + pgtick_hash(quote) * <uint64_t>0xC2B2AE3D27D4EB4F


# Neither of these runs Python code of a subclass (StrEnum has its own hash, another may have its own __class__).
cdef object _text(object value, str name):
    if PyUnicode_CheckExact(value):
        return value
    if PyUnicode_Check(value):
        return str.__str__(value)
    raise TypeError(f"{name} must be a str, not {type(value).__name__}")


cdef object _number(object value):
    if PyLong_CheckExact(value):
        return value
    if PyLong_Check(value) and not PyBool_Check(value):
        return int.__int__(value)
    raise TypeError(f"id must be an int, not {type(value).__name__}")


# No cycle can pass through symbols, and a collector that cleared `rows` would leave the pointers dangling.
@cython.final
@cython.no_gc
cdef class _Row:
    """A symbol with its attributes, read once; in an order that keeps what one look-up reads close together."""

    cdef object base
    cdef object quote
    cdef object symbol
    cdef object exchange
    cdef object venue
    cdef object id
    cdef PyObject* namesake  # the next row of the same (exchange, venue's own symbol), in no order
    cdef int32_t int4  # the id; 0 where int4 does not hold it
    cdef int rank


cdef bint _beats(_Row row, _Row other) noexcept:
    if row.rank != other.rank:
        return row.rank > other.rank
    return row.id > other.id


cdef _Row _new_row(object symbol):
    cdef _Row row = _Row.__new__(_Row)
    row.symbol = symbol
    row.id = _number(symbol.id)
    row.exchange = _text(symbol.exchange, "exchange")
    row.base = _text(symbol.symbol_base, "symbol_base")
    row.quote = _text(symbol.symbol_quote, "symbol_quote")
    row.venue = _text(symbol.exchange_symbol, "exchange_symbol")
    row.rank = 2 * bool(symbol.is_active) + (symbol.expiry is None)
    row.int4 = row.id if -(2**31) <= row.id < 2**31 else 0
    return row


@cython.final
@cython.no_gc
cdef class _Tables:
    """All look-up tables of one state; ``rows`` owns what the C arrays borrow."""

    cdef dict rows
    cdef Arrays arrays

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

    cdef int add(self, _Row row) except -1:
        """Add a row of a new id in place; there must be room."""
        cdef size_t slot
        if 0 <= row.id < MAX_SLOTS:
            slot = row.id
            if slot >= self.arrays.n_slots:
                self.grow_slots(min(max(slot + 1, 2 * self.arrays.n_slots), <size_t>MAX_SLOTS))
        self.rows[row.id] = row
        self.index(row)
        return 0

    cdef void index(self, _Row row) noexcept:
        cdef Py_ssize_t slot = pgtick_small(row.id)
        if 0 <= slot < <Py_ssize_t>self.arrays.n_slots:
            self.arrays.slots[slot] = <PyObject*>row.symbol
        cdef uint64_t h = _hash_pair(row.exchange, row.base, row.quote)
        cdef Entry* entry = _pair_entry(&self.arrays, h, row.exchange, row.base, row.quote)
        if entry.row == NULL or _beats(row, <_Row>entry.row):
            entry.hash = h
            entry.row = <PyObject*>row
        h = _hash_venue(row.exchange, row.venue)
        entry = _venue_entry(&self.arrays, h, row.exchange, row.venue)
        row.namesake = entry.row
        if entry.row == NULL or _beats(row, <_Row>entry.row):
            entry.hash = h
            entry.row = <PyObject*>row
        else:
            row.namesake = (<_Row>entry.row).namesake
            (<_Row>entry.row).namesake = <PyObject*>row


# The entry of these names, or the free one where they would go.
cdef inline Entry* _pair_entry(Arrays* arrays, uint64_t h, object exchange, object base, object quote) noexcept:
    cdef uint64_t i = h & arrays.mask
    cdef Entry* entry = &arrays.pairs[i]
    while entry.row != NULL:
        if (
            entry.hash == h
            and pgtick_same(<PyObject*>(<_Row>entry.row).base, base)
            and pgtick_same(<PyObject*>(<_Row>entry.row).quote, quote)
            and pgtick_same(<PyObject*>(<_Row>entry.row).exchange, exchange)
        ):
            break
        i = (i + 1) & arrays.mask
        entry = &arrays.pairs[i]
    return entry


cdef inline Entry* _venue_entry(Arrays* arrays, uint64_t h, object exchange, object venue) noexcept:
    cdef uint64_t i = h & arrays.mask
    cdef Entry* entry = &arrays.venues[i]
    while entry.row != NULL:
        if (
            entry.hash == h
            and pgtick_same(<PyObject*>(<_Row>entry.row).venue, venue)
            and pgtick_same(<PyObject*>(<_Row>entry.row).exchange, exchange)
        ):
            break
        i = (i + 1) & arrays.mask
        entry = &arrays.venues[i]
    return entry


cdef _Tables _new_tables(dict rows):
    cdef _Tables tables = _Tables.__new__(_Tables)
    tables.build(rows)
    return tables

# Both borrowed, NULL for unknown.
cdef inline PyObject* _slot(Arrays* arrays, object id) noexcept:
    cdef size_t slot
    if likely(PyLong_CheckExact(id)):
        slot = <size_t>pgtick_small(id)  # -1 becomes the largest
        if likely(slot < arrays.n_slots):
            return arrays.slots[slot]
    return NULL


cdef PyObject* _by_any_id(_Tables tables, object id) except? NULL:
    row = tables.rows.get(_number(id))
    return NULL if row is None else <PyObject*>(<_Row>row).symbol
