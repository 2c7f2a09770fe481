"""Ints, as Python has them."""

cdef extern from "Python.h":
    bint PyBool_Check(object) noexcept
    bint PyIndex_Check(object) noexcept
    object PyNumber_Index(object)


cdef inline object whole(object value):
    """Return the int that the value is, or None: no bool, no float."""
    if PyBool_Check(value) or not PyIndex_Check(value):
        return None
    try:
        return PyNumber_Index(value)
    except TypeError:
        return None
