"""The encoded rows of one batch, and what was refused of it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memmove, memset
from libcpp.unordered_map cimport unordered_map

from pgtick._fast.hashing cimport number_of, xxh64
from pgtick._fast.kinds cimport EPOCH_DAYS
from pgtick._fast.rules cimport Plan
from pgtick._fast.wire cimport get16, get32, get64, get64_little, put32, put64, put64_little, reserve

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    const Py_ssize_t PY_SSIZE_T_MIN

cdef extern from *:
    """
    #include <algorithm>
    #define PGTICK_DAY_US INT64_C(86400000000)
    """
    const int64_t _DAY "PGTICK_DAY_US"
    void sort "std::sort"(Place *, Place *) noexcept nogil
    bint is_sorted "std::is_sorted"(Place *, Place *) noexcept nogil

cdef bytes _HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes _TRAILER = b"\xff\xff"


cdef int _malformed(Py_ssize_t at, Py_ssize_t size, const char *what) except -1 nogil:
    with gil:
        raise ValueError(f"byte {at} of {size}: {what.decode()}")


cdef class EncodedBatch:
    """The encoded rows of one batch, and what was refused of it.

    ``errors``: a RowError for each refused row, in the order of the rows. ``days``: the days since 1970-01-01
    (UTC) in which the rows' times lie. It owns its bytes; ``chunks`` copies.
    """

    def __cinit__(self):
        self.errors = []
        self._grow_rows()
        self.starts[0] = 0

    def __dealloc__(self):
        PyMem_RawFree(self.buffer.data)
        PyMem_RawFree(self.starts)
        PyMem_RawFree(self.origins)
        PyMem_RawFree(self.day_bits)

    cdef int _grow_rows(self) except -1 nogil:
        cdef Py_ssize_t room = max(self.rows_room * 2, 256)
        cdef void *starts = PyMem_RawRealloc(self.starts, (room + 1) * sizeof(Py_ssize_t))
        if starts != NULL:
            self.starts = <Py_ssize_t *>starts
        cdef void *origins = PyMem_RawRealloc(self.origins, room * sizeof(Py_ssize_t))
        if origins != NULL:
            self.origins = <Py_ssize_t *>origins
        if starts == NULL or origins == NULL:
            with gil:
                raise MemoryError
        self.rows_room = room
        return 0

    cdef int _grow_days(self, Py_ssize_t needed) except -1 nogil:
        cdef Py_ssize_t room = max(needed, 2 * self.day_bytes, 1024)
        cdef uint8_t *bits = <uint8_t *>PyMem_RawRealloc(self.day_bits, room)
        if bits == NULL:
            with gil:
                raise MemoryError
        memset(bits + self.day_bytes, 0, room - self.day_bytes)
        self.day_bits = bits
        self.day_bytes = room
        return 0

    cdef int insert_keys(
        self, Plan *plans, Py_ssize_t start, Py_ssize_t *keys, Py_ssize_t *key_starts, Py_ssize_t n
    ) except -1 nogil:
        """Insert the content keys into the last row, of which all other fields are there from ``start`` on."""
        cdef uint64_t plain = xxh64(<const uint8_t *>self.buffer.data + start, self.buffer.size - start)
        cdef Py_ssize_t i, at, length
        cdef bint counts = False
        cdef char[24] field
        cdef uint64_t counted = plain
        cdef uint32_t occurrence
        # All that is needed at once, so that nothing can fail once the content is counted.
        reserve(&self.buffer, 4 + n * (4 + sizeof(field)))
        for i in range(n):
            counts = counts or plans[keys[i]].is_text
        if counts:
            occurrence = self.seen[plain] + 1
            self.seen[plain] = occurrence
            if occurrence > 1:
                put32(self.buffer.data + self.buffer.size, occurrence)
                counted = xxh64(<const uint8_t *>self.buffer.data + start, self.buffer.size + 4 - start)
        for i in range(n - 1, -1, -1):
            if plans[keys[i]].is_text:
                length = snprintf(field, sizeof(field), "%lld", <long long>number_of(counted))
            else:
                put64(field, <uint64_t>number_of(plain))
                length = 8
            at = key_starts[i]
            memmove(self.buffer.data + at + 4 + length, self.buffer.data + at, self.buffer.size - at)
            put32(self.buffer.data + at, <uint32_t>length)
            memcpy(self.buffer.data + at + 4, field, length)
            self.buffer.size += 4 + length
        return 0

    @property
    def n_rows(self) -> int:
        return self.n

    @property
    def n_bytes(self) -> int:
        """The length of the whole stream, with its header and trailer."""
        return self.starts[self.n] + 21

    @property
    def n_allocated(self) -> int:
        """The bytes of memory that the rows take, with what is reserved for more; of ``seen`` an estimate."""
        # A node: its hash chain's pointer, key and count, and malloc's head.
        cdef size_t seen = self.seen.size() * 32 + self.seen.bucket_count() * sizeof(void *)
        cdef size_t places = (2 * self.rows_room + 1) * sizeof(Py_ssize_t)
        return self.buffer.room + places + self.day_bytes + seen

    @property
    def indices(self) -> list[int]:
        """The original index of each encoded row."""
        cdef Py_ssize_t i
        cdef list found = [None] * self.n
        for i in range(self.n):
            found[i] = self.origins[i]
        return found

    def origin(self, Py_ssize_t row):
        """Return the original index of one encoded row."""
        if not 0 <= row < self.n:
            raise IndexError(f"no row {row} in a batch of {self.n}")
        return self.origins[row]

    @property
    def days(self) -> set[int]:
        """The days since 1970-01-01 (UTC) of the rows' times."""
        cdef Py_ssize_t i, bit
        found = set()
        for i in range(self.day_bytes):
            if self.day_bits[i]:
                for bit in range(8):
                    if self.day_bits[i] >> bit & 1:
                        found.add(FIRST_DAY + 8 * i + bit)
        return found

    cdef const char *field(self, Py_ssize_t row, Py_ssize_t place, int32_t *length) noexcept nogil:
        """Find a field of a row; its length is -1 where it is NULL."""
        cdef const char *p = self.buffer.data + self.starts[row] + 2
        length[0] = <int32_t>get32(p)
        while place:
            p += 4 + max(length[0], 0)
            length[0] = <int32_t>get32(p)
            place -= 1
        return p + 4

    cdef int _copy(self, EncodedBatch source, Py_ssize_t row, Py_ssize_t n) except -1 nogil:
        """Append n rows of another batch."""
        cdef Py_ssize_t start = source.starts[row]
        cdef Py_ssize_t length = source.starts[row + n] - start
        cdef Py_ssize_t shift = self.buffer.size - start
        cdef Py_ssize_t i
        if n == 0:
            return 0
        reserve(&self.buffer, length)
        memcpy(self.buffer.data + self.buffer.size, source.buffer.data + start, length)
        for i in range(row, row + n):
            self.buffer.size = source.starts[i + 1] + shift
            self.add_row(source.origins[i])
        return 0

    cdef EncodedBatch _of_the_same_days(self):
        cdef EncodedBatch other = EncodedBatch.__new__(EncodedBatch)
        if self.day_bytes:
            other._grow_days(self.day_bytes)
            memcpy(other.day_bits, self.day_bits, self.day_bytes)
        return other

    def sorted(self, Py_ssize_t key, Py_ssize_t time):
        """Return the rows ordered by day, key and time, rows that are alike in the order they have.

        ``key``, ``time``: the columns' places. Integers are in order, texts by their first 8 bytes: it is an order
        for the index's sake. A batch that is in order is returned itself; else a copy, which shares ``errors``.
        """
        cdef EncodedBatch out
        cdef Place *places
        cdef Py_ssize_t i
        cdef bint done
        if self.n == 0:
            return self
        self.claim()
        places = <Place *>PyMem_RawMalloc(self.n * sizeof(Place))
        try:
            if places == NULL:
                raise MemoryError
            with nogil:
                for i in range(self.n):
                    self._place(&places[i], i, key, time)
                done = is_sorted(places, places + self.n)
                if not done:
                    sort(places, places + self.n)
            if done:
                return self
            out = self._of_the_same_days()
            out.errors = self.errors
            with nogil:
                reserve(&out.buffer, self.buffer.size)
                for i in range(self.n):
                    out._copy(self, places[i].row, 1)
            return out
        finally:
            self.busy = False
            PyMem_RawFree(places)

    cdef void _place(self, Place *place, Py_ssize_t row, Py_ssize_t key, Py_ssize_t time) noexcept nogil:
        cdef int32_t length
        cdef const char *p = self.field(row, key, &length)
        cdef int i
        place.row = row
        place.key = 0
        for i in range(min(length, 8)):
            place.key = place.key << 8 | <uint8_t>p[i]
        if length == 2 or length == 4 or length == 8:
            # A negative number comes first.
            place.key ^= <uint64_t>1 << (8 * length - 1)
        elif 0 < length < 8:
            place.key <<= 8 * (8 - length)
        p = self.field(row, time, &length)
        place.time = <int64_t>get64(p) if length == 8 else 0
        place.day = place.time // 1000000 // 86400

    def shift(self, Py_ssize_t offset):
        """Add ``offset`` to every row's original index; the errors keep theirs."""
        cdef Py_ssize_t i
        for i in range(self.n):
            if self.origins[i] > PY_SSIZE_T_MAX - offset if offset > 0 else self.origins[i] < PY_SSIZE_T_MIN - offset:
                raise OverflowError(f"index {self.origins[i]} cannot be shifted by {offset}")
        for i in range(self.n):
            self.origins[i] += offset

    def shrink(self):
        """Give back the memory that is reserved and not used.

        How often a content came is forgotten as well: where text keys count it, append nothing afterwards, or a
        twin of a row before gets that row's key.
        """
        cdef unordered_map[uint64_t, uint32_t] nothing
        self.claim()
        try:
            self.seen.swap(nothing)
            self._fit()
        finally:
            self.busy = False

    cdef int _fit(self) except -1:
        """Shorten the blocks to what is in them."""
        cdef void *block = PyMem_RawRealloc(self.starts, (self.n + 1) * sizeof(Py_ssize_t))
        if block == NULL:
            raise MemoryError
        self.starts = <Py_ssize_t *>block
        # From here on there is room for no more, whatever happens to the other block.
        self.rows_room = self.n
        block = PyMem_RawRealloc(self.origins, self.n * sizeof(Py_ssize_t))
        if block == NULL:
            raise MemoryError
        self.origins = <Py_ssize_t *>block
        block = PyMem_RawRealloc(self.buffer.data, self.buffer.size)
        if block == NULL:
            raise MemoryError
        self.buffer.data = <char *>block
        self.buffer.room = self.buffer.size
        return 0

    def rows(self) -> bytes:
        """Return the encoded rows without header and trailer: what ``load`` takes."""
        return PyBytes_FromStringAndSize(self.buffer.data, self.starts[self.n])

    def index_bytes(self) -> bytes:
        """Return the rows' original indices, each as eight little-endian bytes: what ``load`` takes."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, 8 * self.n)
        cdef char *p = PyBytes_AS_STRING(out)
        cdef Py_ssize_t i
        for i in range(self.n):
            put64_little(p + 8 * i, <uint64_t><int64_t>self.origins[i])
        return out

    @classmethod
    def load(cls, bytes rows not None, bytes index_bytes not None, Py_ssize_t n_columns, Py_ssize_t time):
        """Make a batch again from its ``rows()`` and ``index_bytes()``.

        ``time``: the place of the timestamptz column whose days are noted; -1: none is. Lengths, counts and
        times are checked, what is in the other fields is not: ValueError says what is wrong and at which byte.
        Contents are not counted again: append no rows with text keys to it.
        """
        cdef Py_ssize_t n = len(index_bytes) // 8
        cdef Py_ssize_t size = len(rows)
        cdef const char *origins = PyBytes_AS_STRING(index_bytes)
        cdef EncodedBatch out
        if len(index_bytes) % 8:
            raise ValueError(f"{len(index_bytes)} bytes of indices are not eight a row")
        if not 1 <= n_columns <= 32767 or not -1 <= time < n_columns:
            raise ValueError(f"no time at place {time} of {n_columns} columns")
        out = EncodedBatch.__new__(EncodedBatch)
        reserve(&out.buffer, size + 1)
        memcpy(out.buffer.data, PyBytes_AS_STRING(rows), size)
        with nogil:
            out._walk(origins, n, size, n_columns, time)
        return out

    cdef int _walk(
        self, const char *origins, Py_ssize_t n, Py_ssize_t size, Py_ssize_t n_columns, Py_ssize_t time
    ) except -1 nogil:
        """Find n rows in the buffer's first ``size`` bytes."""
        cdef const char *data = self.buffer.data
        cdef Py_ssize_t at = 0, row, i
        cdef int32_t length
        cdef int64_t day
        for row in range(n):
            if size - at < 2:
                return _malformed(at, size, "fewer rows than indices")
            if get16(data + at) != n_columns:
                return _malformed(at, size, "a row whose number of fields is not that of the columns")
            at += 2
            for i in range(n_columns):
                if size - at < 4:
                    return _malformed(at, size, "a field's length is cut off")
                length = <int32_t>get32(data + at)
                if length < -1:
                    return _malformed(at, size, "a field's length is negative")
                if length > size - at - 4:
                    return _malformed(at, size, "a field is longer than what is left")
                if i == time and length != -1:
                    if length != 8:
                        return _malformed(at, size, "a time is not eight bytes long")
                    day = <int64_t>get64(data + at + 4) // _DAY + EPOCH_DAYS
                    if not FIRST_DAY <= day <= LAST_DAY:
                        return _malformed(at, size, "a time lies before 2009 or behind 9999")
                    self.add_day(day)
                at += 4 + max(length, 0)
            self.buffer.size = at
            self.add_row(<Py_ssize_t>get64_little(origins + 8 * row))
        return 0 if at == size else _malformed(at, size, "more rows than indices")

    def runs(self, Py_ssize_t place):
        """Return (field, start, stop) of the rows that follow each other with an equal field at this place."""
        cdef Py_ssize_t row, start = 0
        cdef int32_t length, other
        cdef const char *p
        cdef const char *q
        found = []
        for row in range(1, self.n + 1):
            p = self.field(start, place, &length)
            if row < self.n:
                q = self.field(row, place, &other)
                if other == length and memcmp(p, q, max(length, 0)) == 0:
                    continue
            found.append((p[:max(length, 0)], start, row))
            start = row
        return found

    def take(self, ranges):
        """Return a copy of the rows start..stop of each range, one range after the other, without ``errors``."""
        cdef EncodedBatch out = self._of_the_same_days()
        cdef Py_ssize_t start, stop
        for start, stop in ranges:
            if not 0 <= start <= stop <= self.n:
                raise ValueError(f"no rows {start} to {stop} in a batch of {self.n}")
            out._copy(self, start, stop - start)
        return out

    def chunks(self, start: int = 0, stop: int | None = None, size: int = 65536):
        """Yield a complete COPY BINARY stream of the rows start..stop, in pieces of about ``size`` bytes."""
        cdef Py_ssize_t first = start
        cdef Py_ssize_t last = self.n if stop is None or stop > self.n else stop
        cdef Py_ssize_t step = size
        if first < 0 or last < 0 or step < 1:
            raise ValueError(f"start {start}, stop {stop}, size {size}: none may be negative, size not 0")
        first = min(first, last)
        cdef Py_ssize_t at = self.starts[first]
        cdef Py_ssize_t end = self.starts[last]
        head = _HEADER
        while end - at > step:
            yield head + PyBytes_FromStringAndSize(self.buffer.data + at, step)
            head = b""
            at += step
        yield head + PyBytes_FromStringAndSize(self.buffer.data + at, end - at) + _TRAILER
