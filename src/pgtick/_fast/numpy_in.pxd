"""NumPy arrays as columns."""

from pgtick._fast.sources cimport Piece

cdef Piece from_numpy(str table, object column, object array, object mask)
