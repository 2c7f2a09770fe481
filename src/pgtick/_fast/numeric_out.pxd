from libc.stdint cimport int64_t, uint64_t

# What a numeric's bytes turn out to be; `decode` counts its own codes on from 16.
cdef enum:
    FITS
    MALFORMED
    NOT_FINITE
    INEXACT
    TOO_LARGE

cdef int to_double(const char *p, Py_ssize_t length, double *out) noexcept nogil
cdef int to_int64(const char *p, Py_ssize_t length, int scale, int64_t *out) noexcept nogil
cdef int to_int128(const char *p, Py_ssize_t length, int precision, int scale, uint64_t *out) noexcept nogil
cdef int check_numeric(const char *p, Py_ssize_t length) noexcept nogil
