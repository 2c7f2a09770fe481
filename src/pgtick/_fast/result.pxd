from libc.stdint cimport int64_t, uint8_t
from libcpp.memory cimport shared_ptr
from libcpp.vector cimport vector

from pgtick._fast.arrow_out cimport Batch, Memory
from pgtick._fast.kinds cimport Kind

# A column while it grows. A width of 0: `values` holds room + 1 int64 offsets into `data`. `valid`: a bit a row,
# made at the first NULL.
cdef struct Store:
    Kind kind
    int width
    int scale
    int precision
    char *values
    char *data
    Py_ssize_t data_room
    uint8_t *valid


cdef int column_store(Store *store, unsigned int oid, object decimals) except -1


# A finished column.
cdef struct Held:
    Kind kind
    int width
    int scale
    int precision
    int64_t n_nulls
    Py_ssize_t data_size


cdef class Columns:
    cdef readonly tuple names
    cdef readonly Py_ssize_t n_rows
    cdef readonly Py_ssize_t first_row
    cdef vector[Held] held
    cdef vector[Memory] values
    cdef vector[Memory] data
    cdef vector[Memory] valid
    cdef shared_ptr[Batch] batch
    cdef dict _arrays
    cdef dict _masks

    cdef int add(self, Store *store) except -1
    cdef bint _is_null(self, Py_ssize_t i, Py_ssize_t row) noexcept
    cdef list _objects(self, Py_ssize_t i)
    cdef object _object(self, Py_ssize_t i, Py_ssize_t row)
    cdef object _array(self, Py_ssize_t i)
    cdef int _export(self) except -1
