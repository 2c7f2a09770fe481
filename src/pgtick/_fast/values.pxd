"""Values to fields, one function a type: the rules of a type are kept here, whatever a value comes from.

A function appends a whole field, length first, or leaves the buffer as it was and returns a Broken of rules.pxd.
"""

from libc.stdint cimport int64_t

from pgtick._fast.rules cimport Plan
from pgtick._fast.wire cimport Buffer

cdef enum:
    MAX_BYTES = 0x3FFFFFFF

cdef int put_int8(Buffer *out, Plan *plan, int64_t number) except -1 nogil
cdef int put_int4(Buffer *out, Plan *plan, int64_t number) except -1 nogil
cdef int put_int2(Buffer *out, Plan *plan, int64_t number) except -1 nogil
cdef int put_float8(Buffer *out, Plan *plan, double x) except -1 nogil
cdef int put_float4(Buffer *out, Plan *plan, double x) except -1 nogil
cdef int put_bool(Buffer *out, bint value) except -1 nogil
cdef int put_bytes(Buffer *out, const void *data, Py_ssize_t n) except -1 nogil
cdef int text_broken(Plan *plan, const char *text, Py_ssize_t n) noexcept nogil
cdef int make_plan(Plan *plan, object column, bint is_time) except -1
