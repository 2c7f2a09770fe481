"""Where the values of a column lie, and how one of them becomes a field."""

cimport cython
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from pgtick._fast.rules cimport Clock, Plan
from pgtick._fast.wire cimport Buffer


cdef enum Kind:
    NOTHING = 0  # all NULL
    CONSTANT  # one finished field for all rows
    OBJECT
    INT
    UINT
    FLOAT
    DECIMAL  # an integer of `width` bytes x 10^-scale
    BOOL
    BIT
    TIME  # a count of multiply / divide µs since 1970
    DAY
    UCS4  # `width` bytes of UCS-4, NULs at the end cut
    CHARS  # `width` bytes, NULs at the end cut
    FIXED  # `width` bytes
    VARYING  # offsets of `width` bytes into the data
    VIEW  # Arrow's views of 16 bytes
    DICTIONARY  # indices of `width` bytes into another source


cdef struct Source
ctypedef int (*Take)(Buffer *out, Plan *plan, Source *source, Py_ssize_t i, Clock *clock) except -1 nogil


cdef struct Source:
    Take take
    Kind kind
    bint is_text  # of FIXED, VARYING, VIEW: UTF-8
    bint has_nulls  # there may be some
    bint has_nat  # of TIME: the least number is NULL
    bint unsigned  # of DICTIONARY: its indices
    int width
    int scale
    int64_t multiply
    int64_t divide
    const char *data
    Py_ssize_t stride
    const uint8_t *mask  # a byte a value, not 0: NULL
    Py_ssize_t mask_stride
    const uint8_t *valid  # a bit a value, 0: NULL
    Py_ssize_t shift  # where the bits of the first value lie
    const char *offsets
    int64_t first  # what the offsets may say
    int64_t last
    const char **heaps  # of VIEW: its buffers and their lengths
    const int64_t *heap_sizes
    Py_ssize_t n_heaps
    Source *dictionary
    Py_ssize_t n_dictionary
    int64_t day  # of CONSTANT: what goes into the clock


@cython.final
cdef class Piece:
    """A run of a column's values; it keeps alive what its source points to."""

    cdef Source source
    cdef Py_ssize_t n
    cdef object owner
    cdef Piece dictionary
    cdef str shown  # its type
    cdef object time_unit  # of TIME and DAY: NumPy's (name, count), for naming a value


cdef inline int64_t load_int(const char *p, int width) noexcept nogil:
    cdef int64_t eight
    if width == 8:
        memcpy(&eight, p, 8)
        return eight
    return _load_narrow(p, width)


cdef inline int64_t _load_narrow(const char *p, int width) noexcept nogil:
    cdef int four
    cdef short two
    if width == 4:
        memcpy(&four, p, 4)
        return four
    if width == 2:
        memcpy(&two, p, 2)
        return two
    return <signed char>p[0]


cdef bint is_null(const Source *source, Py_ssize_t i) noexcept nogil
cdef int choose(Piece piece, Plan *plan, str type, Clock *clock) except -1
cdef object value_at(Piece piece, Py_ssize_t i)
