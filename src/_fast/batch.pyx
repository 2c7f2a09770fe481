"""The encoded rows of one batch, and what was refused of it."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memmove, memset

from pgtick._fast.hashing cimport number_of, xxh64
from pgtick._fast.rules cimport Plan
from pgtick._fast.wire cimport put32, put64, reserve

cdef bytes _HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes _TRAILER = b"\xff\xff"


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
        for i in range(n):
            counts = counts or plans[keys[i]].is_text
        if counts:
            occurrence = self.seen[plain] + 1
            self.seen[plain] = occurrence
            if occurrence > 1:
                reserve(&self.buffer, 4)
                put32(self.buffer.data + self.buffer.size, occurrence)
                counted = xxh64(<const uint8_t *>self.buffer.data + start, self.buffer.size + 4 - start)
        for i in range(n - 1, -1, -1):
            if plans[keys[i]].is_text:
                length = snprintf(field, 24, "%lld", <long long>number_of(counted))
            else:
                put64(field, <uint64_t>number_of(plain))
                length = 8
            at = key_starts[i]
            reserve(&self.buffer, 4 + length)
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
        return self.buffer.size + 21

    @property
    def indices(self) -> list[int]:
        """The original index of each encoded row."""
        cdef Py_ssize_t i
        return [self.origins[i] for i in range(self.n)]

    @property
    def days(self) -> set[int]:
        """The days since 1970-01-01 (UTC) of the rows' times."""
        cdef Py_ssize_t i, bit
        found = set()
        for i in range(self.day_bytes):
            if self.day_bits[i]:
                for bit in range(8):
                    if self.day_bits[i] >> bit & 1:
                        found.add(14245 + 8 * i + bit)
        return found

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
