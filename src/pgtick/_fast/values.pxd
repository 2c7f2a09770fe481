"""Python values to fields, one function a type."""

from pgtick._fast.rules cimport Plan

cdef int make_plan(Plan *plan, object column, bint is_time) except -1
