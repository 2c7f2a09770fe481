"""Instants and dates to fields."""

from libc.stdint cimport int64_t

from pgtick._fast.rules cimport Clock, Plan
from pgtick._fast.wire cimport Buffer

cdef int set_clock(Clock *clock, object time_unit) except -1
cdef int put_timestamptz(Buffer *out, Plan *plan, object value, Clock *clock) except -1
cdef int put_date(Buffer *out, Plan *plan, object value, Clock *clock) except -1
cdef int put_count(
    Buffer *out, Plan *plan, int64_t count, int64_t multiply, int64_t divide, Clock *clock
) except -1 nogil
cdef int put_day(Buffer *out, int64_t day) except -1 nogil
