"""Arrow's C data interface as columns."""

cimport cython
from libc.stdint cimport int64_t

from pgtick._fast.sources cimport Piece

cdef extern from *:
    """
    #ifndef ARROW_C_DATA_INTERFACE
    #define ARROW_C_DATA_INTERFACE
    #include <stdint.h>

    struct ArrowSchema {
        const char *format, *name, *metadata;
        int64_t flags, n_children;
        struct ArrowSchema **children, *dictionary;
        void (*release)(struct ArrowSchema *);
        void *private_data;
    };

    struct ArrowArray {
        int64_t length, null_count, offset, n_buffers, n_children;
        const void **buffers;
        struct ArrowArray **children, *dictionary;
        void (*release)(struct ArrowArray *);
        void *private_data;
    };
    #endif

    #ifndef ARROW_C_STREAM_INTERFACE
    #define ARROW_C_STREAM_INTERFACE
    struct ArrowArrayStream {
        int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *);
        int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *);
        const char *(*get_last_error)(struct ArrowArrayStream *);
        void (*release)(struct ArrowArrayStream *);
        void *private_data;
    };
    #endif
    """
    struct ArrowSchema:
        const char *format
        const char *name
        int64_t n_children
        ArrowSchema **children
        ArrowSchema *dictionary
        void (*release)(ArrowSchema *) noexcept nogil

    struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void **buffers
        ArrowArray **children
        ArrowArray *dictionary
        void (*release)(ArrowArray *) noexcept nogil

    struct ArrowArrayStream:
        int (*get_schema)(ArrowArrayStream *, ArrowSchema *) noexcept nogil
        int (*get_next)(ArrowArrayStream *, ArrowArray *) noexcept nogil
        const char *(*get_last_error)(ArrowArrayStream *) noexcept nogil
        void (*release)(ArrowArrayStream *) noexcept nogil


@cython.final
cdef class ArrowBatch:
    """Owns an array, and releases it when the last piece of it goes."""

    cdef ArrowArray array


@cython.final
cdef class ArrowStream:
    cdef str table
    cdef ArrowSchema schema
    cdef ArrowArrayStream stream
    cdef bint as_table  # the columns are the struct's children
    cdef ArrowBatch only  # of one array, until it is taken

    cdef list names(self)
    cdef ArrowBatch next(self)
    cdef Piece form(self, object column, Py_ssize_t place)
    cdef Piece piece(self, object column, Py_ssize_t place, ArrowBatch batch)


cdef bint is_arrow(object value)
cdef ArrowStream open_arrow(str table, object value, bint as_table)
