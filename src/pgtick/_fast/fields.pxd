from pgtick._fast.result cimport Store

# What can be wrong with the bytes of a field; the codes of numeric_out come first, those of decode behind.
cdef enum:
    WRONG_LENGTH = 16
    NOT_A_BOOL
    NOT_UTF8
    NOT_JSONB
    INFINITE_TIME
    FAR_TIME
    NO_MEMORY

cdef int decode_field(Store *store, Py_ssize_t row, const char *p, Py_ssize_t length) noexcept nogil
cdef int null_field(Store *store, Py_ssize_t row, Py_ssize_t room) noexcept nogil
