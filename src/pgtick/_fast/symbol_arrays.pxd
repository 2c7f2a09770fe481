"""Whole arrays through the tables of a SymbolCache."""

from pgtick._fast.symbol_tables cimport Tables


cdef struct Counts:
    Py_ssize_t hits
    Py_ssize_t misses


# What the caller hands over, held so that nobody changes it; before the tables are taken, since it may run Python.
cdef list own_list(object values, str name)
cdef object own_ids(object ids)

# ``counts`` is filled before an unknown name or id raises.
cdef object ids_of(Tables tables, object exchange, list names, bint require, Counts* counts)
cdef list symbols_of(Tables tables, object ids, bint require, Counts* counts)
