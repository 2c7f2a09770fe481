"""Columns of one table, encoded in batches."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map

from pgtick._fast.arrow_in cimport ArrowStream
from pgtick._fast.batch cimport EncodedBatch
from pgtick._fast.rules cimport Clock, Plan
from pgtick._fast.sources cimport Piece, Source

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX  # as many rows as there are


@cython.final
cdef class Columns:
    cdef str table
    cdef tuple columns
    cdef Plan *plans
    cdef Source **sources
    cdef Py_ssize_t *at  # where the next row lies in a column's first piece
    cdef Py_ssize_t n_columns
    cdef list pieces  # of each column those that are not used up
    cdef dict scales
    cdef dict masks
    cdef object ignored
    cdef ArrowStream stream
    cdef list places  # of each column in the stream, or None
    cdef Py_ssize_t loaded  # rows that lie in the pieces from here on
    cdef Py_ssize_t origin  # the index of the next row
    cdef bint objects
    cdef EncodedBatch kept  # the refused rows, where they are asked for, with NULL for each value that does not fit
    cdef list unfit  # of each of these rows such values by the names of their columns
    cdef Clock clock
    cdef unordered_map[uint64_t, uint32_t] seen

    cdef EncodedBatch encode(self, Py_ssize_t limit)
    cdef bint _load(self) except -1
    cdef int _rows(self, EncodedBatch out, Py_ssize_t n) except -1 nogil
    cdef int _add(self, Py_ssize_t i, Piece piece) except -1
    cdef int _add_scalar(self, Py_ssize_t i, object value, bint given) except -1
    cdef int _add_mapping(self, dict given) except -1
    cdef Py_ssize_t _add_array(self, Py_ssize_t i, object value) except -1
    cdef Py_ssize_t _add_arrow(self, Py_ssize_t i, object value) except -1
    cdef int _add_stream(self, object given) except -1
    cdef int _refuse_mask(self, object column, object given) except -1
    cdef int _set_scale(self, Piece piece, object column) except -1
    cdef int _keep(self, Py_ssize_t row) except -1
    cdef int _refuse(self, EncodedBatch out, Py_ssize_t column, Py_ssize_t row, int broken) except -1


cdef Columns open_columns(
    str table, tuple columns, object ignored, Plan *plans, object given, object time_unit, object scales, object masks
)
