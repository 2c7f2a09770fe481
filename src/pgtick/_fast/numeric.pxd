"""Numbers to the wire form of numeric.

Each function appends a whole field, length first, or leaves the buffer as it was and returns a Broken of rules.pxd.
"""

from libc.stdint cimport int64_t, uint64_t

from pgtick._fast.wire cimport Buffer

cdef int put_digits(
    Buffer *out, int sign_rule, bint negative, uint64_t digits, int64_t exponent, int64_t scale
) except -1 nogil
cdef int put_text(Buffer *out, int sign_rule, const char *text, Py_ssize_t n) except -1 nogil
cdef int put_double(Buffer *out, int sign_rule, double value, int *scale_hint) except -1 nogil
cdef int put_int(Buffer *out, int sign_rule, object value) except -1
cdef int put_decimal(Buffer *out, int sign_rule, object value) except -1
