"""Instants and dates to fields."""

from pgtick._fast.rules cimport Clock, Plan
from pgtick._fast.wire cimport Buffer

cdef int set_clock(Clock *clock, object time_unit) except -1
cdef int put_timestamptz(Buffer *out, Plan *plan, object value, Clock *clock) except -1
cdef int put_date(Buffer *out, Plan *plan, object value, Clock *clock) except -1
