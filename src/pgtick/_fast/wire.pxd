"""The wire: big-endian integers, and the one growing buffer that an encoder writes to."""

from cpython.mem cimport PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef struct Buffer:
    char *data
    Py_ssize_t size
    Py_ssize_t room


cdef inline int grow(Buffer *out, Py_ssize_t needed) except -1 nogil:
    cdef Py_ssize_t room = max(out.room * 2, out.size + needed, 16384)
    cdef char *data = <char *>PyMem_RawRealloc(out.data, room)
    if data == NULL:
        with gil:
            raise MemoryError
    out.data = data
    out.room = room
    return 0


cdef inline int reserve(Buffer *out, Py_ssize_t needed) except -1 nogil:
    if out.room - out.size < needed:
        grow(out, needed)
    return 0


cdef inline void put16(char *p, int value) noexcept nogil:
    p[0] = <char>(value >> 8)
    p[1] = <char>value


cdef inline void put32(char *p, uint32_t value) noexcept nogil:
    p[0] = <char>(value >> 24)
    p[1] = <char>(value >> 16)
    p[2] = <char>(value >> 8)
    p[3] = <char>value


cdef inline void put64(char *p, uint64_t value) noexcept nogil:
    put32(p, <uint32_t>(value >> 32))
    put32(p + 4, <uint32_t>value)


cdef inline uint16_t get16(const char *p) noexcept nogil:
    cdef const uint8_t *b = <const uint8_t *>p
    return <uint16_t>((b[0] << 8) | b[1])


cdef inline uint32_t get32(const char *p) noexcept nogil:
    return (<uint32_t><uint8_t>p[0] << 24 | <uint32_t><uint8_t>p[1] << 16
            | <uint32_t><uint8_t>p[2] << 8 | <uint8_t>p[3])


cdef inline uint64_t get64(const char *p) noexcept nogil:
    return <uint64_t>get32(p) << 32 | get32(p + 4)


cdef inline void put64_little(char *p, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        p[i] = <char>(value >> 8 * i)


cdef inline uint64_t get64_little(const char *p) noexcept nogil:
    cdef int i
    cdef uint64_t value = 0
    for i in range(8):
        value |= <uint64_t><uint8_t>p[i] << 8 * i
    return value


cdef inline int put_field(Buffer *out, const void *data, uint32_t n) except -1 nogil:
    """Append a field of n bytes, its length first."""
    reserve(out, 4 + <Py_ssize_t>n)
    put32(out.data + out.size, n)
    memcpy(out.data + out.size + 4, data, n)
    out.size += 4 + <Py_ssize_t>n
    return 0


cdef inline int put_field4(Buffer *out, uint32_t value) except -1 nogil:
    reserve(out, 8)
    put32(out.data + out.size, 4)
    put32(out.data + out.size + 4, value)
    out.size += 8
    return 0


cdef inline int put_field8(Buffer *out, uint64_t value) except -1 nogil:
    reserve(out, 12)
    put32(out.data + out.size, 8)
    put64(out.data + out.size + 4, value)
    out.size += 12
    return 0
