"""XXH64 with seed 0, as its specification has it, and the number that it gives a row's content."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #define PGTICK_P1 0x9E3779B185EBCA87ULL
    #define PGTICK_P2 0xC2B2AE3D27D4EB4FULL
    #define PGTICK_P3 0x165667B19E3779F9ULL
    #define PGTICK_P4 0x85EBCA77C2B2AE63ULL
    #define PGTICK_P5 0x27D4EB2F165667C5ULL
    """
    const uint64_t P1 "PGTICK_P1"
    const uint64_t P2 "PGTICK_P2"
    const uint64_t P3 "PGTICK_P3"
    const uint64_t P4 "PGTICK_P4"
    const uint64_t P5 "PGTICK_P5"


cdef inline uint64_t _rotate(uint64_t x, int n) noexcept nogil:
    return (x << n) | (x >> (64 - n))


cdef inline uint64_t _read32(const uint8_t *p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline uint64_t _read64(const uint8_t *p) noexcept nogil:
    return _read32(p) | _read32(p + 4) << 32


cdef inline uint64_t _round(uint64_t lane, uint64_t word) noexcept nogil:
    return _rotate(lane + word * P2, 31) * P1


cdef inline uint64_t xxh64(const uint8_t *p, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef uint64_t h, a, b, c, d
    if n >= 32:
        a = P1 + P2
        b = P2
        c = 0
        d = 0 - P1
        while end - p >= 32:
            a = _round(a, _read64(p))
            b = _round(b, _read64(p + 8))
            c = _round(c, _read64(p + 16))
            d = _round(d, _read64(p + 24))
            p += 32
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        h = (h ^ _round(0, a)) * P1 + P4
        h = (h ^ _round(0, b)) * P1 + P4
        h = (h ^ _round(0, c)) * P1 + P4
        h = (h ^ _round(0, d)) * P1 + P4
    else:
        h = P5
    h += <uint64_t>n
    while end - p >= 8:
        h = _rotate(h ^ _round(0, _read64(p)), 27) * P1 + P4
        p += 8
    if end - p >= 4:
        h = _rotate(h ^ _read32(p) * P1, 23) * P2 + P3
        p += 4
    while p < end:
        h = _rotate(h ^ <uint64_t>p[0] * P5, 11) * P1
        p += 1
    h = (h ^ (h >> 33)) * P2
    h = (h ^ (h >> 29)) * P3
    return h ^ (h >> 32)


cdef inline int64_t number_of(uint64_t h) noexcept nogil:
    """Return the 63-bit hash, negated so that it never meets a venue's own number."""
    cdef int64_t number = -<int64_t>(h >> 1)
    return number if number else -1
