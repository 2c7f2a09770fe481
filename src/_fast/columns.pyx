"""Columns to COPY BINARY: NumPy arrays, Arrow tables, streams; the same bytes that the rows would give.

What a column can be is settled before the first row: its type's function is chosen once (sources.choose). The rows
are then encoded without the GIL; only a column of objects needs it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from pgtick._fast.arrow_in cimport ArrowBatch, ArrowStream, is_arrow, open_arrow
from pgtick._fast.batch cimport MAX_KEYS, EncodedBatch
from pgtick._fast.numpy_in cimport from_numpy
from pgtick._fast.rules cimport IS_NULL, NOT_TIME, Plan, refusal, rule_of
from pgtick._fast.sources cimport (
    CONSTANT, INT, NOTHING, OBJECT, UINT, Piece, Source, choose, is_null, value_at,
)
from pgtick._fast.times cimport set_clock
from pgtick._fast.wire cimport Buffer, put16, put32, reserve

from collections.abc import Mapping

from pgtick._fast.lazy_numpy import numpy as _np
from pgtick.errors import ValidationError


cdef class Columns:
    """Columns of one table, of which each ``encode`` takes the next rows."""

    def __cinit__(self, Py_ssize_t n):
        self.n_columns = n
        self.pieces = []
        self.plans = <Plan *>PyMem_RawCalloc(n + 1, sizeof(Plan))
        self.sources = <Source **>PyMem_RawCalloc(n + 1, sizeof(Source *))
        self.at = <Py_ssize_t *>PyMem_RawCalloc(n + 1, sizeof(Py_ssize_t))
        if self.plans == NULL or self.sources == NULL or self.at == NULL:
            raise MemoryError
        while n:
            self.pieces.append([])
            n -= 1

    def __dealloc__(self):
        PyMem_RawFree(self.plans)
        PyMem_RawFree(self.sources)
        PyMem_RawFree(self.at)

    cdef bint _load(self) except -1:
        """Get further rows; return whether there are any."""
        cdef ArrowBatch batch
        cdef Py_ssize_t i
        if self.stream is None:
            return False
        while self.loaded == 0:
            batch = self.stream.next()
            if batch is None:
                self.stream = None
                return False
            for i in range(self.n_columns):
                if self.places[i] is not None:
                    self._add(i, self.stream.piece(self.columns[i], self.places[i], batch))
            self.loaded = batch.array.length
        return True

    cdef EncodedBatch encode(self, Py_ssize_t limit):
        """Encode the next rows, ``limit`` at most. Identical contents are counted on from batch to batch."""
        cdef EncodedBatch out = EncodedBatch.__new__(EncodedBatch)
        cdef Py_ssize_t i, n
        cdef Piece piece
        out.seen.swap(self.seen)
        while limit and (self.loaded or self._load()):
            n = min(limit, self.loaded)
            for i in range(self.n_columns):
                piece = (<list>self.pieces[i])[0]
                self.sources[i] = &piece.source
                n = min(n, piece.n - self.at[i])
            if self.objects:
                self._rows(out, n)
            else:
                with nogil:
                    self._rows(out, n)
            for i in range(self.n_columns):
                piece = (<list>self.pieces[i])[0]
                if piece.n != PY_SSIZE_T_MAX:
                    self.at[i] += n
                    if self.at[i] == piece.n:
                        self.at[i] = 0
                        (<list>self.pieces[i]).pop(0)
            self.origin += n
            self.loaded -= n
            limit -= n
        out.seen.swap(self.seen)
        return out

    cdef int _rows(self, EncodedBatch out, Py_ssize_t n) except -1 nogil:
        cdef Buffer *buffer = &out.buffer
        cdef Py_ssize_t row, i, start, n_keys
        cdef Py_ssize_t[MAX_KEYS] keys, key_starts
        cdef int64_t last_day = 0
        cdef int broken
        cdef Plan *plan
        cdef Source *source
        cdef Source **sources = self.sources
        cdef Plan *plans = self.plans
        cdef Py_ssize_t *at = self.at
        cdef Py_ssize_t n_columns = self.n_columns
        for row in range(n):
            start = buffer.size
            n_keys = 0
            self.clock.day = 0
            reserve(buffer, 2 + 32 * n_columns)
            put16(buffer.data + start, <int>n_columns)
            buffer.size += 2
            for i in range(n_columns):
                plan = &plans[i]
                source = sources[i]
                if not source.has_nulls or not is_null(source, at[i] + row):
                    broken = source.take(buffer, plan, source, at[i] + row, &self.clock)
                elif plan.content_key:
                    keys[n_keys] = i
                    key_starts[n_keys] = buffer.size
                    n_keys += 1
                    continue
                elif plan.nullable:
                    broken = 0
                    reserve(buffer, 4)
                    put32(buffer.data + buffer.size, 0xFFFFFFFF)
                    buffer.size += 4
                else:
                    broken = IS_NULL
                if broken:
                    with gil:
                        self._refuse(out, i, row, broken)
                    buffer.size = start
                    break
            else:
                if n_keys:
                    out.insert_keys(plans, start + 2, keys, key_starts, n_keys)
                out.add_row(self.origin + row)
                if self.clock.day != last_day:
                    last_day = self.clock.day
                    out.add_day(last_day)
        return 0

    cdef int _refuse(self, EncodedBatch out, Py_ssize_t column, Py_ssize_t row, int broken) except -1:
        value = value_at((<list>self.pieces[column])[0], self.at[column] + row)
        out.errors.append(refusal(self.table, self.origin + row, self.columns[column], value, broken))
        if self.kept is not None:
            self._keep(row)
        return 0

    cdef int _keep(self, Py_ssize_t row) except -1:
        cdef Buffer *buffer = &self.kept.buffer
        cdef Py_ssize_t i, start
        cdef Source *source
        reserve(buffer, 2 + 32 * self.n_columns)
        put16(buffer.data + buffer.size, <int>self.n_columns)
        buffer.size += 2
        unfit = {}
        for i in range(self.n_columns):
            source = self.sources[i]
            start = buffer.size
            if not (source.has_nulls and is_null(source, self.at[i] + row)):
                if not source.take(buffer, &self.plans[i], source, self.at[i] + row, &self.clock):
                    continue
                unfit[self.columns[i].name] = value_at((<list>self.pieces[i])[0], self.at[i] + row)
                buffer.size = start
            reserve(buffer, 4 + 32 * self.n_columns)
            put32(buffer.data + buffer.size, 0xFFFFFFFF)
            buffer.size += 4
        self.kept.add_row(self.origin + row)
        self.unfit.append(unfit)
        return 0

    cdef int _add(self, Py_ssize_t i, Piece piece) except -1:
        """Append a piece to a column, once its type fits."""
        if self.columns[i].name in self.scales and piece.source.kind != NOTHING:
            self._set_scale(piece, self.columns[i])
        if not choose(piece, &self.plans[i], self.columns[i].type, &self.clock):
            column = self.columns[i]
            if column.type == "timestamptz" and piece.source.kind in (INT, UINT):
                rule = rule_of(NOT_TIME)
            else:
                rule = f"cannot be encoded as {column.type}"
            raise ValidationError(self.table, column.name, piece.shown, rule)
        if piece.source.kind == OBJECT:
            self.objects = True
        if piece.n:
            (<list>self.pieces[i]).append(piece)
        return 0

    cdef int _add_scalar(self, Py_ssize_t i, object value, bint given) except -1:
        """Make one field for all rows; NULL where none is given."""
        cdef Piece piece = Piece.__new__(Piece)
        cdef Buffer buffer
        cdef int broken = 0
        cdef Plan *plan = &self.plans[i]
        name = self.columns[i].name
        if name in self.scales or name in self.masks:
            raise ValidationError(self.table, name, value, "must be an array to have a scale or a mask")
        piece.n = PY_SSIZE_T_MAX
        if value is None:
            if not (plan.nullable or plan.content_key):
                rule = rule_of(IS_NULL) if given else "must be given: the column takes no NULL"
                raise ValidationError(self.table, name, None, rule)
            piece.source.kind = NOTHING
            piece.source.has_nulls = True
        else:
            buffer.data = NULL
            buffer.size = buffer.room = 0
            self.clock.day = 0
            try:
                broken = plan.put(&buffer, plan, value, &self.clock)
                if broken:
                    error = refusal(self.table, 0, self.columns[i], value, broken)
                    raise ValidationError(error.table, error.column, value, error.rule)
                piece.owner = PyBytes_FromStringAndSize(buffer.data, buffer.size)
            finally:
                PyMem_RawFree(buffer.data)
            piece.source.kind = CONSTANT
            piece.source.data = PyBytes_AS_STRING(piece.owner)
            piece.source.width = <int>PyBytes_GET_SIZE(piece.owner)
            piece.source.day = self.clock.day
        return self._add(i, piece)

    cdef int _add_mapping(self, dict given) except -1:
        cdef Py_ssize_t i, n, rows = -1
        first = None
        for i, column in enumerate(self.columns):
            name = column.name
            value = given.get(name)
            if isinstance(value, _np.ndarray):
                n = self._add_array(i, value)
            elif is_arrow(value):
                n = self._add_arrow(i, value)
            elif _is_array(value):
                n = self._add_array(i, value)
            else:
                self._add_scalar(i, value, name in given)
                continue
            if n == PY_SSIZE_T_MAX:
                continue
            if rows < 0:
                rows = n
                first = name
            elif n != rows:
                raise ValidationError(self.table, name, n, f"values must be {rows}, as {first} has")
        if rows < 0:
            raise ValidationError(self.table, "*", list(given), "must have an array among them: nothing says how many")
        self.loaded = rows
        return 0

    cdef Py_ssize_t _add_array(self, Py_ssize_t i, object value) except -1:
        column = self.columns[i]
        cdef Piece piece
        if isinstance(value, (list, tuple)):
            # As they are: NumPy would make one type of them.
            value = _np.fromiter(value, dtype=object, count=len(value))
        elif not isinstance(value, _np.ndarray):
            value = _np.asarray(value)
        if value.ndim:
            piece = from_numpy(self.table, column, value, self.masks.get(column.name))
        else:
            if column.name in self.masks:
                raise ValidationError(self.table, column.name, value, "must be an array to have a scale or a mask")
            # One value of NumPy's, again and again.
            piece = from_numpy(self.table, column, value.reshape(1), None)
            piece.source.stride = 0
            piece.n = PY_SSIZE_T_MAX
        self._add(i, piece)
        return piece.n

    cdef Py_ssize_t _add_arrow(self, Py_ssize_t i, object value) except -1:
        """Append all arrays of a column that Arrow hands over; return how many values they have."""
        cdef ArrowStream stream = open_arrow(self.table, value, False)
        cdef Piece piece
        cdef Py_ssize_t n = 0
        column = self.columns[i]
        self._refuse_mask(column, stream)
        self._add(i, stream.form(column, 0))
        while (batch := stream.next()) is not None:
            piece = stream.piece(column, 0, batch)
            self._add(i, piece)
            n += piece.n
        return n

    cdef int _add_stream(self, object given) except -1:
        """Take the columns of an Arrow table, whose rows _load gets."""
        cdef Py_ssize_t i
        self.stream = open_arrow(self.table, given, True)
        names = self.stream.names()
        _known(self.table, self.columns, self.ignored, dict.fromkeys(names, given))
        for i, column in enumerate(self.columns):
            if names.count(column.name) > 1:
                raise ValidationError(self.table, column.name, names, "must be there once")
            self.places.append(names.index(column.name) if column.name in names else None)
            if self.places[i] is None:
                self._add_scalar(i, None, False)
            else:
                self._refuse_mask(column, given)
                self._add(i, self.stream.form(column, self.places[i]))
        return 0

    cdef int _refuse_mask(self, object column, object given) except -1:
        if column.name in self.masks:
            raise ValidationError(self.table, column.name, given, "takes no mask: Arrow says itself what is NULL")
        return 0

    cdef int _set_scale(self, Piece piece, object column) except -1:
        scale = self.scales[column.name]
        if column.type != "numeric" or piece.source.kind not in (INT, UINT):
            raise ValidationError(
                self.table, column.name, piece.shown, "takes no scale: it is not integers for numeric"
            )
        if not isinstance(scale, int) or not -131072 <= scale <= 16383:
            raise ValidationError(self.table, column.name, scale, "must be a scale from -131072 to 16383")
        piece.source.scale = scale
        return 0


cdef bint _is_array(object value):
    return isinstance(value, (_np.generic, list, tuple)) or (
        hasattr(value, "__array__") and not isinstance(value, type)
    )


cdef dict _known(str table, tuple columns, object ignored, object given):
    """Return what is given by name; every name must be a column of the table."""
    names = {column.name for column in columns}
    for name in given or ():
        if name not in names and name not in ignored:
            raise ValidationError(table, str(name), given[name], "must be a column of the table")
    return dict(given or {})


cdef Columns open_columns(
    str table, tuple columns, object ignored, Plan *plans, object given, object time_unit, object scales, object masks
):
    """Check everything that can be known before the first row; ValidationError names the column."""
    cdef Columns opened = Columns.__new__(Columns, len(columns))
    opened.table = table
    opened.columns = columns
    # Of its own, since encoding writes to it and other threads may be encoding.
    memcpy(opened.plans, plans, len(columns) * sizeof(Plan))
    set_clock(&opened.clock, time_unit)
    opened.ignored = ignored
    opened.places = []
    opened.scales = _known(table, columns, (), scales)
    opened.masks = _known(table, columns, (), masks)
    if isinstance(given, _np.ndarray) and given.dtype.names:
        given = {name: given[name] for name in given.dtype.names}
    if isinstance(given, Mapping):
        opened._add_mapping(_known(table, columns, ignored, given))
    elif is_arrow(given):
        opened._add_stream(given)
    else:
        raise TypeError(f"columns are a mapping of names to arrays, or an Arrow table, not {type(given).__name__}")
    return opened
