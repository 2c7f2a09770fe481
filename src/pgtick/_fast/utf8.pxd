"""UTF-8: whether bytes are it, and from UCS-4."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline bint is_utf8(const char *text, Py_ssize_t n) noexcept nogil:
    """Whether it is what PostgreSQL and Python take: no overlong form, no surrogate, nothing above U+10FFFF."""
    cdef const uint8_t *p = <const uint8_t *>text
    cdef const uint8_t *end = p + n
    cdef uint64_t eight
    cdef uint32_t code
    cdef int more, i
    while p < end:
        if end - p >= 8:
            memcpy(&eight, p, 8)
            if not eight & <uint64_t>0x8080808080808080:
                p += 8
                continue
        if p[0] < 0x80:
            p += 1
            continue
        more = 1 if p[0] >> 5 == 6 else 2 if p[0] >> 4 == 14 else 3 if p[0] >> 3 == 30 else 0
        if more == 0 or end - p <= more:
            return False
        code = p[0] & (0x3F >> more)
        for i in range(1, more + 1):
            if p[i] >> 6 != 2:
                return False
            code = code << 6 | (p[i] & 0x3F)
        if code < (0x80 if more == 1 else 0x800 if more == 2 else 0x10000) or code > 0x10FFFF:
            return False
        if code >> 11 == 27:
            return False
        p += more + 1
    return True


cdef inline Py_ssize_t from_ucs4(const char *p, Py_ssize_t n, char *out) noexcept nogil:
    """Write n bytes of UCS-4 as UTF-8, which is never longer; return its length, -1 where it is no text."""
    cdef char *start = out
    cdef const char *end = p + n
    cdef uint32_t code
    while p < end:
        memcpy(&code, p, 4)
        p += 4
        if code < 0x80:
            out[0] = <char>code
            out += 1
        elif code < 0x800:
            out[0] = <char>(0xC0 | code >> 6)
            out[1] = <char>(0x80 | code & 0x3F)
            out += 2
        elif code < 0x10000:
            if code >> 11 == 27:
                return -1
            out[0] = <char>(0xE0 | code >> 12)
            out[1] = <char>(0x80 | code >> 6 & 0x3F)
            out[2] = <char>(0x80 | code & 0x3F)
            out += 3
        elif code <= 0x10FFFF:
            out[0] = <char>(0xF0 | code >> 18)
            out[1] = <char>(0x80 | code >> 12 & 0x3F)
            out[2] = <char>(0x80 | code >> 6 & 0x3F)
            out[3] = <char>(0x80 | code & 0x3F)
            out += 4
        else:
            return -1
    return out - start
