# The buffer of a batch.

cdef inline void _put16(char *p, int value) noexcept nogil:
    p[0] = <char>(value >> 8)
    p[1] = <char>value


cdef inline void _put32(char *p, uint32_t value) noexcept nogil:
    p[0] = <char>(value >> 24)
    p[1] = <char>(value >> 16)
    p[2] = <char>(value >> 8)
    p[3] = <char>value


cdef inline void _put64(char *p, uint64_t value) noexcept nogil:
    _put32(p, <uint32_t>(value >> 32))
    _put32(p + 4, <uint32_t>value)


@cython.final
cdef class EncodedBatch:
    """The encoded rows of one batch, and what was refused of it."""

    cdef char *data
    cdef Py_ssize_t size
    cdef Py_ssize_t room
    cdef Py_ssize_t *starts  # n + 1 offsets
    cdef Py_ssize_t *origins  # the rows' indices in what the caller handed over
    cdef Py_ssize_t n
    cdef Py_ssize_t rows_room
    cdef readonly list errors
    cdef readonly set days

    def __cinit__(self):
        self.errors = []
        self.days = set()
        self._grow_rows()
        self.starts[0] = 0

    def __dealloc__(self):
        PyMem_Free(self.data)
        PyMem_Free(self.starts)
        PyMem_Free(self.origins)

    cdef int _grow(self, Py_ssize_t needed) except -1:
        cdef Py_ssize_t room = max(self.room * 2, self.size + needed, 16384)
        cdef char *data = <char *>PyMem_Realloc(self.data, room)
        if data == NULL:
            raise MemoryError
        self.data = data
        self.room = room
        return 0

    cdef int _grow_rows(self) except -1:
        cdef Py_ssize_t room = max(self.rows_room * 2, 256)
        cdef Py_ssize_t *starts = <Py_ssize_t *>PyMem_Realloc(self.starts, (room + 1) * sizeof(Py_ssize_t))
        if starts == NULL:
            raise MemoryError
        self.starts = starts
        cdef Py_ssize_t *origins = <Py_ssize_t *>PyMem_Realloc(self.origins, room * sizeof(Py_ssize_t))
        if origins == NULL:
            raise MemoryError
        self.origins = origins
        self.rows_room = room
        return 0

    cdef inline int reserve(self, Py_ssize_t needed) except -1:
        if self.room - self.size < needed:
            self._grow(needed)
        return 0

    cdef inline int add_row(self, Py_ssize_t origin) except -1:
        if self.n == self.rows_room:
            self._grow_rows()
        self.origins[self.n] = origin
        self.n += 1
        self.starts[self.n] = self.size
        return 0

    @property
    def n_rows(self) -> int:
        return self.n

    @property
    def n_bytes(self) -> int:
        """The length of the whole stream, with its header and trailer."""
        return self.size + 21

    @property
    def indices(self) -> list[int]:
        """The original index of each encoded row."""
        cdef Py_ssize_t i
        return [self.origins[i] for i in range(self.n)]

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
            yield head + PyBytes_FromStringAndSize(self.data + at, step)
            head = b""
            at += step
        yield head + PyBytes_FromStringAndSize(self.data + at, end - at) + _TRAILER
