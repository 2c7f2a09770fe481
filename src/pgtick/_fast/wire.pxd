"""Big-endian integers as they lie on the wire."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef inline uint16_t get16(const char *p) noexcept nogil:
    cdef const uint8_t *b = <const uint8_t *>p
    return <uint16_t>((b[0] << 8) | b[1])


cdef inline uint32_t get32(const char *p) noexcept nogil:
    cdef const uint8_t *b = <const uint8_t *>p
    return (<uint32_t>b[0] << 24) | (<uint32_t>b[1] << 16) | (<uint32_t>b[2] << 8) | b[3]


cdef inline uint64_t get64(const char *p) noexcept nogil:
    return (<uint64_t>get32(p) << 32) | get32(p + 4)
