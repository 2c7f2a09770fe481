"""The encoded rows of one batch."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map

from pgtick._fast.rules cimport Plan
from pgtick._fast.wire cimport Buffer

cdef enum:
    MAX_KEYS = 8  # content keys a table


@cython.final
cdef class EncodedBatch:
    cdef Buffer buffer
    cdef Py_ssize_t *starts  # n + 1 offsets
    cdef Py_ssize_t *origins  # the rows' indices in what the caller handed over
    cdef Py_ssize_t n
    cdef Py_ssize_t rows_room
    cdef uint8_t *day_bits  # one for each day from 2009-01-01 on
    cdef Py_ssize_t day_bytes
    cdef unordered_map[uint64_t, uint32_t] seen  # how often a content came, where text keys count it
    cdef readonly list errors

    cdef int _grow_rows(self) except -1 nogil
    cdef int _grow_days(self, Py_ssize_t needed) except -1 nogil
    cdef int insert_keys(
        self, Plan *plans, Py_ssize_t start, Py_ssize_t *keys, Py_ssize_t *key_starts, Py_ssize_t n
    ) except -1 nogil

    cdef inline int add_row(self, Py_ssize_t origin) except -1 nogil:
        if self.n == self.rows_room:
            self._grow_rows()
        self.origins[self.n] = origin
        self.n += 1
        self.starts[self.n] = self.buffer.size
        return 0

    cdef inline int add_day(self, int64_t day) except -1 nogil:
        """Note a day since 1970; none is before 2009."""
        cdef Py_ssize_t place = <Py_ssize_t>(day - 14245)
        if place >> 3 >= self.day_bytes:
            self._grow_days((place >> 3) + 1)
        self.day_bits[place >> 3] |= 1 << (place & 7)
        return 0
