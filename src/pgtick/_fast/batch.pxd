"""The encoded rows of one batch."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map

from pgtick._fast.rules cimport Plan
from pgtick._fast.wire cimport Buffer

cdef enum:
    MAX_KEYS = 8  # content keys a table
    FIRST_DAY = 14245  # 2009-01-01, since 1970: no row is older
    LAST_DAY = 2932896  # 9999-12-31

cdef extern from *:
    """
    #include <cstdint>

    struct pgtick_place {
        int64_t day;
        uint64_t key;
        int64_t time;
        Py_ssize_t row;
        bool operator<(const pgtick_place &other) const {
            if (day != other.day) return day < other.day;
            if (key != other.key) return key < other.key;
            if (time != other.time) return time < other.time;
            return row < other.row;
        }
    };
    """
    cppclass Place "pgtick_place":
        int64_t day
        uint64_t key
        int64_t time
        Py_ssize_t row


@cython.final
cdef class EncodedBatch:
    cdef Buffer buffer
    cdef Py_ssize_t *starts  # n + 1 offsets
    cdef Py_ssize_t *origins  # the rows' indices in what the caller handed over
    cdef Py_ssize_t n
    cdef Py_ssize_t rows_room
    cdef uint8_t *day_bits  # one for each day from FIRST_DAY on
    cdef Py_ssize_t day_bytes
    cdef unordered_map[uint64_t, uint32_t] seen  # how often a content came, where text keys count it
    cdef bint busy  # its last row is being encoded, or another thread is sorting it
    cdef readonly list errors

    cdef int _grow_rows(self) except -1 nogil
    cdef int _grow_days(self, Py_ssize_t needed) except -1 nogil
    cdef int insert_keys(
        self, Plan *plans, Py_ssize_t start, Py_ssize_t *keys, Py_ssize_t *key_starts, Py_ssize_t n
    ) except -1 nogil

    cdef const char *field(self, Py_ssize_t row, Py_ssize_t place, int32_t *length) noexcept nogil
    cdef int _copy(self, EncodedBatch source, Py_ssize_t row, Py_ssize_t n) except -1 nogil
    cdef void _place(self, Place *place, Py_ssize_t row, Py_ssize_t key, Py_ssize_t time) noexcept nogil
    cdef EncodedBatch _of_the_same_days(self)
    cdef int _fit(self) except -1
    cdef int _walk(
        self, const char *origins, Py_ssize_t n, Py_ssize_t size, Py_ssize_t n_columns, Py_ssize_t time
    ) except -1 nogil

    cdef inline int claim(self) except -1:
        """Keep others from changing the batch until ``busy`` is False again."""
        if self.busy:
            raise RuntimeError("the batch is in use: a row is being encoded onto it, or it is being sorted")
        self.busy = True
        return 0

    cdef inline int reserve_row(self) except -1 nogil:
        if self.n == self.rows_room:
            self._grow_rows()
        return 0

    cdef inline int add_row(self, Py_ssize_t origin) except -1 nogil:
        self.reserve_row()
        self.origins[self.n] = origin
        self.n += 1
        self.starts[self.n] = self.buffer.size
        return 0

    cdef inline int add_day(self, int64_t day) except -1 nogil:
        """Note a day since 1970."""
        cdef Py_ssize_t place = <Py_ssize_t>(day - FIRST_DAY)
        if place >> 3 >= self.day_bytes:
            self._grow_days((place >> 3) + 1)
        self.day_bits[place >> 3] |= 1 << (place & 7)
        return 0
