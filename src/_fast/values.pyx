"""Python values to fields: one function a type.

A function appends a whole field, length first, or leaves the buffer as it was and returns the Broken rule.
Whatever else a value raises (a property of the caller's, no memory) passes through.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport fabs, isfinite, nextafterf
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from pgtick._fast cimport numeric
from pgtick._fast.ints cimport whole
from pgtick._fast.rules cimport (
    FLOAT4_RANGE, HAS_NUL, INT2_RANGE, INT4_RANGE, INT8_RANGE, NOT_ALLOWED, NOT_BOOL, NOT_BYTES, NOT_FINITE,
    NOT_FLOAT, NOT_INT, NOT_JSON, NOT_NUMBER, NOT_STR, NOT_UNICODE, NOT_UUID, TOO_LONG, OK, Clock, Plan, Put,
    sign_broken,
)
from pgtick._fast.times cimport put_date, put_timestamptz
from pgtick._fast.wire cimport Buffer, put16, put32, put_field, put_field4, put_field8, reserve

import json
import re
from datetime import timedelta as _timedelta
from decimal import Decimal as _Decimal
from uuid import UUID as _UUID

from msgspec import Raw as _Raw

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyUnicode_Compare(object left, object right) except? -1
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    bint PyUnicode_Check(object) noexcept
    bint PyBytes_Check(object) noexcept
    bint PyFloat_Check(object) noexcept
    bint PyLong_Check(object) noexcept
    bint PyBool_Check(object) noexcept
    double PyFloat_AS_DOUBLE(object) noexcept
    bint PyObject_CheckBuffer(object) noexcept

cdef object _MICROSECOND = _timedelta(microseconds=1)
cdef Py_ssize_t _MAX_BYTES = 0x3FFFFFFF
# An escaped NUL, which jsonb cannot hold; the backslashes before it are whole pairs.
cdef object _ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


cdef int _to_int8(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef int overflow = 0, broken
    cdef long long number
    if not PyLong_Check(value) or PyBool_Check(value):
        value = whole(value)
        if value is None:
            return NOT_INT
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        return INT8_RANGE
    broken = sign_broken(plan.sign_rule, number < 0, number == 0)
    return broken or put_field8(out, <uint64_t>number)


cdef int _to_int4(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef int overflow = 0, broken
    cdef long long number
    if not PyLong_Check(value) or PyBool_Check(value):
        value = whole(value)
        if value is None:
            return NOT_INT
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not -2147483648 <= number <= 2147483647:
        return INT4_RANGE
    broken = sign_broken(plan.sign_rule, number < 0, number == 0)
    return broken or put_field4(out, <uint32_t>number)


cdef int _to_int2(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef int overflow = 0, broken
    cdef long long number
    value = whole(value)
    if value is None:
        return NOT_INT
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not -32768 <= number <= 32767:
        return INT2_RANGE
    broken = sign_broken(plan.sign_rule, number < 0, number == 0)
    if broken:
        return broken
    reserve(out, 6)
    put32(out.data + out.size, 2)
    put16(out.data + out.size + 4, <int>number)
    out.size += 6
    return OK


cdef int _double_of(Plan *plan, object value, double *x) except -1:
    if PyFloat_Check(value):
        x[0] = PyFloat_AS_DOUBLE(value)
    else:
        value = whole(value)
        if value is None:
            return NOT_FLOAT
        try:
            x[0] = value
        except OverflowError:
            return NOT_FINITE
    if not isfinite(x[0]):
        return NOT_FINITE
    return sign_broken(plan.sign_rule, x[0] < 0, x[0] == 0)


cdef int _to_float8(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef double x = 0
    cdef uint64_t bits
    cdef int broken = _double_of(plan, value, &x)
    if broken:
        return broken
    memcpy(&bits, &x, 8)
    return put_field8(out, bits)


cdef int _to_float4(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef double x = 0
    cdef float y, other
    cdef uint32_t bits
    cdef int broken = _double_of(plan, value, &x)
    if broken:
        return broken
    y = <float>x
    other = nextafterf(y, <float>(1e39 if x > y else -1e39))
    if x != y and fabs(x - y) == fabs(other - x):
        # Halfway between two: the double's shortest text, which is what counts, lies above or below.
        nearer = max if _Decimal(repr(x)) > _Decimal(x) else min
        y = nearer(y, other) if _Decimal(repr(x)) != _Decimal(x) else y
    if not isfinite(y) or (y == 0 and x != 0):
        return FLOAT4_RANGE
    memcpy(&bits, &y, 4)
    return put_field4(out, bits)


cdef int _to_numeric(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef const char *text
    cdef Py_ssize_t n = 0
    if PyFloat_Check(value):
        return numeric.put_double(out, plan.sign_rule, PyFloat_AS_DOUBLE(value), &plan.scale)
    if PyUnicode_Check(value):
        try:
            text = PyUnicode_AsUTF8AndSize(value, &n)
        except UnicodeEncodeError:
            return NOT_NUMBER
        return numeric.put_text(out, plan.sign_rule, text, n)
    if isinstance(value, _Decimal):
        return numeric.put_decimal(out, plan.sign_rule, value)
    if PyBytes_Check(value):
        return numeric.put_text(out, plan.sign_rule, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    value = whole(value)
    if value is None:
        return NOT_NUMBER
    return numeric.put_int(out, plan.sign_rule, value)


cdef int _to_text(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef const char *text
    cdef Py_ssize_t n = 0
    if not PyUnicode_Check(value):
        return NOT_STR
    try:
        text = PyUnicode_AsUTF8AndSize(value, &n)
    except UnicodeEncodeError:
        return NOT_UNICODE
    if n and memchr(text, 0, n) != NULL:
        return HAS_NUL
    if plan.allowed != NULL:
        for allowed in <tuple>plan.allowed:
            if allowed is value or PyUnicode_Compare(allowed, value) == 0:
                break
        else:
            return NOT_ALLOWED
    if n > _MAX_BYTES:
        return TOO_LONG
    return put_field(out, text, <uint32_t>n)


cdef int _to_bool(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    if value is not True and value is not False:
        return NOT_BOOL
    reserve(out, 5)
    put32(out.data + out.size, 1)
    out.data[out.size + 4] = <char>(value is True)
    out.size += 5
    return OK


cdef int _to_uuid(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    if not isinstance(value, _UUID):
        if not PyUnicode_Check(value):
            return NOT_UUID
        try:
            value = _UUID(value)
        except ValueError:
            return NOT_UUID
    data = value.bytes
    if not PyBytes_Check(data) or PyBytes_GET_SIZE(data) != 16:
        return NOT_UUID
    return put_field(out, PyBytes_AS_STRING(data), 16)


cdef int _to_bytea(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef Py_buffer view
    if not PyObject_CheckBuffer(value):
        return NOT_BYTES
    try:
        PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    except (BufferError, ValueError):  # not contiguous: NumPy raises the second
        return NOT_BYTES
    try:
        if view.len > _MAX_BYTES:
            return TOO_LONG
        return put_field(out, view.buf, <uint32_t>view.len)
    finally:
        PyBuffer_Release(&view)


cdef int _to_jsonb(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef Py_ssize_t n
    if isinstance(value, _Raw):
        data = bytes(value)
    else:
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError):
            return NOT_JSON
        if "\\u0000" in text and _ESCAPED_NUL.search(text):
            return HAS_NUL
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return NOT_UNICODE
    n = PyBytes_GET_SIZE(data)
    if n >= _MAX_BYTES:
        return TOO_LONG
    reserve(out, 5 + n)
    put32(out.data + out.size, <uint32_t>(n + 1))
    out.data[out.size + 4] = 1  # the version of jsonb's wire form
    memcpy(out.data + out.size + 5, PyBytes_AS_STRING(data), n)
    out.size += 5 + n
    return OK


cdef Put _put_of(str type) except NULL:
    """Return the type's function. A new type is a line here, its function, and its check in rules.py."""
    if type == "int2":
        return _to_int2
    if type == "int4":
        return _to_int4
    if type == "int8":
        return _to_int8
    if type == "float4":
        return _to_float4
    if type == "float8":
        return _to_float8
    if type == "numeric":
        return _to_numeric
    if type in ("text", "varchar"):
        return _to_text
    if type == "bool":
        return _to_bool
    if type == "timestamptz":
        return put_timestamptz
    if type == "date":
        return put_date
    if type == "uuid":
        return _to_uuid
    if type == "bytea":
        return _to_bytea
    if type == "jsonb":
        return _to_jsonb
    raise ValueError(f"type {type} cannot be encoded")


cdef int make_plan(Plan *plan, object column, bint is_time) except -1:
    """Fill the plan of a Column; the column must outlive it."""
    plan.put = _put_of(column.type)
    plan.nullable = column.nullable
    plan.content_key = column.content_key
    plan.is_text = column.type in ("text", "varchar")
    plan.is_time = is_time
    if column.rule is None or isinstance(column.rule, tuple):
        plan.sign_rule = 0
    elif column.rule in ("> 0", ">= 0"):
        plan.sign_rule = 1 if column.rule == "> 0" else 2
    else:
        raise ValueError(f"no such rule: {column.rule!r}")
    plan.scale = 0
    plan.max_ahead = column.max_ahead // _MICROSECOND
    plan.allowed = <void *>column.rule if isinstance(column.rule, tuple) else NULL
    return 0
