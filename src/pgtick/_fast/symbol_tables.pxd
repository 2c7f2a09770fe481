"""The tables of a SymbolCache, and the look-ups in them, which are compiled into whoever asks."""

cimport cython
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint64_t

cdef extern from *:
    """
    /* A non-negative int of one digit, else -1; no call into the interpreter. */
    static CYTHON_INLINE Py_ssize_t pgtick_small(PyObject *number) {
    #if PY_VERSION_HEX >= 0x030C0000
        if (PyUnstable_Long_IsCompact((PyLongObject *)number))
            return PyUnstable_Long_CompactValue((PyLongObject *)number);
        return -1;
    #else
        Py_ssize_t n_digits = Py_SIZE(number);
        return n_digits == 1 ? (Py_ssize_t)((PyLongObject *)number)->ob_digit[0] : n_digits == 0 ? 0 : -1;
    #endif
    }

    /* The hash that an exact str carries, made where it does not yet; never fails. */
    static CYTHON_INLINE uint64_t pgtick_hash(PyObject *text) {
        Py_hash_t hash = ((PyASCIIObject *)text)->hash;
        return (uint64_t)(hash != -1 ? hash : PyObject_Hash(text));
    }

    /* Of exact strs whose hash was made: so they are in their final form, and comparing them cannot fail. */
    static CYTHON_INLINE int pgtick_same(PyObject *a, PyObject *b) {
        if (a == b)
            return 1;
        Py_ssize_t n = PyUnicode_GET_LENGTH(a);
        return n == PyUnicode_GET_LENGTH(b) && PyUnicode_KIND(a) == PyUnicode_KIND(b)
            && memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), (size_t)n * PyUnicode_KIND(a)) == 0;
    }
    """
    bint likely(bint) noexcept
    Py_ssize_t pgtick_small(object number) noexcept
    uint64_t pgtick_hash(object text) noexcept
    bint pgtick_same(PyObject* a, object b) noexcept

cdef enum:
    # 128 MB of pointers at most, which the kernel backs only where ids are; ids beyond stay in the dict.
    MAX_SLOTS = 1 << 24


cdef struct Entry:
    uint64_t hash
    PyObject* row  # NULL: the entry is free


# A struct, so that a look-up reads it through a pointer: passing the Tables on would count a reference.
cdef struct Arrays:
    PyObject** slots
    size_t n_slots
    Entry* pairs
    Entry* venues
    uint64_t mask


@cython.final
cdef class Row:
    cdef object base
    cdef object quote
    cdef object symbol
    cdef object exchange
    cdef object venue
    cdef object id
    cdef PyObject* namesake  # the next row of the same (exchange, venue's own symbol), in no order
    cdef int32_t int4  # the id; 0 where int4 does not hold it
    cdef int rank


@cython.final
cdef class Tables:
    cdef dict rows
    cdef Arrays arrays

    cdef int build(self, dict rows) except -1
    cdef int grow_slots(self, size_t n) except -1
    cdef bint has_room(self) noexcept
    cdef int add(self, Row row) except -1
    cdef void index(self, Row row) noexcept


cdef object exact_text(object value, str name)
cdef object exact_int(object value)
cdef Row new_row(object symbol)
cdef Tables new_tables(dict rows)
cdef PyObject* by_any_id(Tables tables, object id) except? NULL


# Odd numbers: as many hashes as there were, and (a, b) is not (b, a). str hashes are random enough as they are.
cdef inline uint64_t hash_venue(object exchange, object name) noexcept:
    return pgtick_hash(exchange) * <uint64_t>0x9E3779B97F4A7C15 + pgtick_hash(name)


cdef inline uint64_t hash_pair(object exchange, object base, object quote) noexcept:
    return hash_venue(exchange, base) + pgtick_hash(quote) * <uint64_t>0xC2B2AE3D27D4EB4F


# The entry of these names, or the free one where they would go.
cdef inline Entry* pair_entry(Arrays* arrays, uint64_t h, object exchange, object base, object quote) noexcept:
    cdef uint64_t i = h & arrays.mask
    cdef Entry* entry = &arrays.pairs[i]
    while entry.row != NULL:
        if (
            entry.hash == h
            and pgtick_same(<PyObject*>(<Row>entry.row).base, base)
            and pgtick_same(<PyObject*>(<Row>entry.row).quote, quote)
            and pgtick_same(<PyObject*>(<Row>entry.row).exchange, exchange)
        ):
            break
        i = (i + 1) & arrays.mask
        entry = &arrays.pairs[i]
    return entry


cdef inline Entry* venue_entry(Arrays* arrays, uint64_t h, object exchange, object venue) noexcept:
    cdef uint64_t i = h & arrays.mask
    cdef Entry* entry = &arrays.venues[i]
    while entry.row != NULL:
        if (
            entry.hash == h
            and pgtick_same(<PyObject*>(<Row>entry.row).venue, venue)
            and pgtick_same(<PyObject*>(<Row>entry.row).exchange, exchange)
        ):
            break
        i = (i + 1) & arrays.mask
        entry = &arrays.venues[i]
    return entry


# Borrowed, NULL for unknown; as from by_any_id.
cdef inline PyObject* slot_of(Arrays* arrays, object id) noexcept:
    cdef size_t slot
    if likely(PyLong_CheckExact(id)):
        slot = <size_t>pgtick_small(id)  # -1 becomes the largest
        if likely(slot < arrays.n_slots):
            return arrays.slots[slot]
    return NULL
