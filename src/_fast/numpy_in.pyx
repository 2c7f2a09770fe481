"""NumPy arrays as columns: read where they lie, strided or not; only foreign byte orders are copied."""

from libc.stdint cimport int64_t, uint8_t

from pgtick._fast.sources cimport (
    BOOL, CHARS, DAY, FIXED, FLOAT, INT, OBJECT, TIME, UCS4, UINT, Piece,
)

from pgtick._fast.lazy_numpy import numpy as _np
from pgtick.errors import ValidationError

#: µs of a unit; the units below are its fractions.
cdef dict _MULTIPLY = {
    "W": 604800000000, "D": 86400000000, "h": 3600000000, "m": 60000000, "s": 1000000, "ms": 1000, "us": 1, "ns": 1,
}
cdef dict _KINDS = {"i": INT, "u": UINT, "b": BOOL, "U": UCS4, "S": CHARS, "V": FIXED, "O": OBJECT}


cdef char *_address(object array) except? NULL:
    return <char *><size_t>array.__array_interface__["data"][0]


cdef Piece from_numpy(str table, object column, object array, object mask):
    """Return the array as a piece; ``mask`` is None or true where the value is NULL.

    Raises ValidationError for an array that cannot be a column, whatever its type.
    """
    cdef Piece piece = Piece.__new__(Piece)
    if isinstance(array, _np.ma.MaskedArray):
        own = _np.ma.getmask(array)
        array = array.data
        if own is not _np.ma.nomask:
            mask = own if mask is None else own | mask
    if array.ndim != 1:
        raise ValidationError(table, column.name, array.shape, "must have one dimension")
    if array.dtype.kind == "T":
        array = array.astype(object)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    piece.shown = str(array.dtype)
    _set_kind(piece, table, column, array.dtype)
    piece.n = array.shape[0]
    piece.source.width = array.dtype.itemsize
    piece.source.data = _address(array)
    piece.source.stride = array.strides[0]
    if mask is not None:
        mask = _checked_mask(table, column, mask, piece.n)
        piece.source.mask = <const uint8_t *>_address(mask)
        piece.source.mask_stride = mask.strides[0]
        piece.source.has_nulls = True
    piece.owner = (array, mask)
    return piece


cdef object _checked_mask(str table, object column, object mask, Py_ssize_t n):
    mask = _np.asarray(mask)
    if mask.dtype != bool or mask.shape != (n,):
        raise ValidationError(table, column.name, mask, f"must have a mask of {n} bools")
    return mask


cdef int _set_kind(Piece piece, str table, object column, object dtype) except -1:
    kind = dtype.kind
    if kind == "f" and dtype.itemsize in (4, 8):
        piece.source.kind = FLOAT
    elif kind == "M":
        _set_unit(piece, table, column, dtype)
    elif kind in _KINDS and dtype.names is None and dtype.subdtype is None:
        piece.source.kind = _KINDS[kind]
        piece.source.has_nulls = kind == "O"
    else:
        raise ValidationError(table, column.name, piece.shown, f"cannot be encoded as {column.type}")
    return 0


cdef int _set_unit(Piece piece, str table, object column, object dtype) except -1:
    cdef int64_t count
    unit, count = _np.datetime_data(dtype)
    if unit not in _MULTIPLY:
        # A year or a month is no instant, and what is finer than ns does not reach beyond 1970 by days.
        raise ValidationError(table, column.name, piece.shown, f"must count one of {', '.join(_MULTIPLY)}")
    piece.time_unit = (unit, count)
    piece.source.has_nulls = piece.source.has_nat = True
    if column.type == "date":
        if (unit, count) != ("D", 1):
            raise ValidationError(table, column.name, piece.shown, "cannot be encoded as date; datetime64[D] can")
        piece.source.kind = DAY
        return 0
    piece.source.kind = TIME
    piece.source.multiply = _MULTIPLY[unit] * count
    piece.source.divide = 1000 if unit == "ns" else 1
    return 0
