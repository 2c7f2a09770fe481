"""Arrow's C data interface as columns: tables, record batches, streams and single arrays, whoever made them.

Nothing is imported for it: a producer hands capsules over (``__arrow_c_stream__``, ``__arrow_c_array__``). What it
hands over is moved out of the capsule and released once, when nothing needs it any more. The interface gives no
buffer's length, so that offsets are held against each other, and views against the lengths they come with.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport strerror

from pgtick._fast.sources cimport (
    BIT, DAY, DECIMAL, DICTIONARY, FIXED, FLOAT, INT, NOTHING, TIME, UINT, VARYING, VIEW, Piece, Source, load_int,
)

from pgtick.errors import PgtickError, ValidationError

cdef const char *_EMPTY = ""
cdef dict _INTS = {"c": 1, "C": 1, "s": 2, "S": 2, "i": 4, "I": 4, "l": 8, "L": 8}
cdef dict _UNITS = {"s": ("s", 1000000, 1), "m": ("ms", 1000, 1), "u": ("us", 1, 1), "n": ("ns", 1, 1000)}
cdef dict _NAMES = {
    "n": "null", "b": "bool", "c": "int8", "C": "uint8", "s": "int16", "S": "uint16", "i": "int32", "I": "uint32",
    "l": "int64", "L": "uint64", "e": "float16", "f": "float32", "g": "float64", "z": "binary", "Z": "large_binary",
    "vz": "binary_view", "u": "utf8", "U": "large_utf8", "vu": "utf8_view", "tdD": "date32", "tdm": "date64",
    "+l": "list", "+L": "large_list", "+vl": "list_view", "+vL": "large_list_view", "+s": "struct", "+m": "map",
    "+r": "run_end_encoded",
}
cdef dict _PREFIXES = {
    "d:": "decimal", "w:": "fixed_size_binary", "ts": "timestamp", "tt": "time", "tD": "duration", "ti": "interval",
    "+w": "fixed_size_list", "+u": "union",
}


cdef class ArrowBatch:
    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)


cdef class ArrowStream:
    """Arrays of one schema, one after the other."""

    def __dealloc__(self):
        if self.schema.release != NULL:
            self.schema.release(&self.schema)
        if self.stream.release != NULL:
            self.stream.release(&self.stream)

    cdef list names(self):
        """Return the names of a table's columns."""
        cdef int64_t i
        cdef const ArrowSchema *child
        found = []
        for i in range(self.schema.n_children):
            child = self.schema.children[i]
            found.append("" if child == NULL or child.name == NULL else child.name.decode("utf-8", "replace"))
        return found

    cdef ArrowBatch next(self):
        """Return the next array, or None behind the last."""
        cdef ArrowBatch batch = self.only
        cdef int failed
        self.only = None
        if batch is None and self.stream.release != NULL:
            batch = ArrowBatch.__new__(ArrowBatch)
            with nogil:
                failed = self.stream.get_next(&self.stream, &batch.array)
            self.check(failed)
        if batch is None or batch.array.release == NULL:
            return None
        if batch.array.length < 0 or batch.array.offset < 0:
            raise self.broken(f"length {batch.array.length}, offset {batch.array.offset}")
        if self.as_table:
            if batch.array.n_children != self.schema.n_children or (
                batch.array.n_children and batch.array.children == NULL
            ):
                raise self.broken(f"{batch.array.n_children} children for {self.schema.n_children} columns")
            if batch.array.null_count != 0 and batch.array.n_buffers > 0 and batch.array.buffers[0] != NULL:
                raise self.broken("rows that are NULL as a whole")
        return batch

    def broken(self, what):
        return ValidationError(self.table, "*", what, "cannot be in an Arrow table")

    def check(self, int failed):
        cdef const char *text
        if failed == 0:
            return
        text = self.stream.get_last_error(&self.stream)
        message = (strerror(failed) if text == NULL else text).decode("utf-8", "replace")
        raise PgtickError(f"{self.table}: the Arrow stream failed: {message}")

    cdef Piece form(self, object column, Py_ssize_t place):
        """Return a piece without rows: what the column is."""
        cdef ArrowSchema *schema = self.schema.children[place] if self.as_table else &self.schema
        return _form(self.table, column, schema, True)

    cdef Piece piece(self, object column, Py_ssize_t place, ArrowBatch batch):
        """Return the batch's values of a column."""
        cdef Piece piece = self.form(column, place)
        if self.as_table:
            _fill(piece, self.table, column, batch.array.children[place], batch.array.offset, batch.array.length)
        else:
            _fill(piece, self.table, column, &batch.array, 0, batch.array.length)
        piece.owner = batch
        return piece


cdef str _name(str form):
    return "Arrow " + (_NAMES.get(form) or _PREFIXES.get(form[:2]) or f"format {form}")


cdef Piece _form(str table, object column, const ArrowSchema *schema, bint outermost):
    """Read the type of a column from its schema."""
    cdef Piece piece = Piece.__new__(Piece)
    cdef Source *source = &piece.source
    if schema == NULL or schema.format == NULL:
        raise ValidationError(table, column.name, None, "has no type in the Arrow schema")
    form = schema.format.decode("utf-8", "replace")
    piece.shown = _name(form)
    if schema.dictionary != NULL:
        if form not in _INTS or not outermost:
            raise ValidationError(table, column.name, piece.shown, "cannot index a dictionary")
        piece.dictionary = _form(table, column, schema.dictionary, False)
        piece.shown = f"Arrow dictionary of {piece.dictionary.shown}"
        source.kind = DICTIONARY
        source.dictionary = &piece.dictionary.source
        source.unsigned = form.isupper()
        source.width = _INTS[form]
    elif form in _INTS:
        source.kind = UINT if form.isupper() else INT
        source.width = _INTS[form]
    elif form in ("f", "g"):
        source.kind = FLOAT
        source.width = 4 if form == "f" else 8
    elif form in ("u", "U", "z", "Z"):
        source.kind = VARYING
        source.width = 8 if form.isupper() else 4
        source.is_text = form in ("u", "U")
    elif form in ("vu", "vz"):
        source.kind = VIEW
        source.width = 16
        source.is_text = form == "vu"
    elif form in ("n", "b", "tdD"):
        source.kind = NOTHING if form == "n" else BIT if form == "b" else DAY
        source.width = 4 if form == "tdD" else 0
        piece.time_unit = ("D", 1)
    elif form[:2] in ("d:", "w:", "ts"):
        _set_parameters(piece, table, column, form)
    else:
        raise ValidationError(table, column.name, piece.shown, f"cannot be encoded as {column.type}")
    return piece


cdef int _set_parameters(Piece piece, str table, object column, str form) except -1:
    cdef Source *source = &piece.source
    if form[:2] == "ts":
        unit, _, zone = form[2:].partition(":")
        if unit not in _UNITS:
            raise ValidationError(table, column.name, piece.shown, f"cannot be in an Arrow schema: {form}")
        if not zone:
            rule = "must have a zone: a naive time would be read in the machine's"
            raise ValidationError(table, column.name, piece.shown, rule)
        name, source.multiply, source.divide = _UNITS[unit]
        piece.time_unit = (name, 1)
        source.kind = TIME
        source.width = 8
        return 0
    try:
        numbers = list(map(int, form[2:].split(",")))
        if form[0] == "w":
            source.kind = FIXED
            (source.width,) = numbers
            bits = 8
        else:
            source.kind = DECIMAL
            _, source.scale, bits = [*numbers, 128] if len(numbers) == 2 else numbers
            source.width = bits // 8
    except (ValueError, OverflowError):
        bits = 0
    if bits not in (8, 32, 64, 128, 256) or source.width < 0 or not -131072 <= source.scale <= 16383:
        raise ValidationError(table, column.name, piece.shown, f"cannot be in an Arrow schema: {form}")
    return 0


cdef int _fill(
    Piece piece, str table, object column, const ArrowArray *array, int64_t skip, int64_t n
) except -1:
    """Point the piece to n values of the array, behind ``skip`` of them."""
    cdef Source *source = &piece.source
    cdef int kind = source.kind
    cdef int64_t at
    cdef int64_t needed = 0 if kind == NOTHING else 3 if kind in (VARYING, VIEW) else 2
    cdef const char *data
    if array == NULL or needed and array.buffers == NULL:
        raise _broken(table, column, "nothing")
    if skip < 0 or array.offset < 0 or array.length < 0 or array.offset >= 1 << 48 or array.length >= 1 << 48:
        raise _broken(table, column, f"offset {array.offset}, length {array.length}")
    if n > array.length - skip:
        raise _broken(table, column, f"{array.length} values for {skip + n} rows")
    if (array.n_buffers < needed) if kind == VIEW else (array.n_buffers != needed):
        raise _broken(table, column, f"{array.n_buffers} buffers")
    at = array.offset + skip
    piece.n = n
    if needed == 0:
        source.has_nulls = True
        return 0
    if array.null_count != 0 and array.buffers[0] != NULL:
        source.valid = <const uint8_t *>array.buffers[0]
        source.has_nulls = True
    source.shift = at
    source.stride = source.width
    data = <const char *>array.buffers[1]
    if data == NULL and n and source.width:
        raise _broken(table, column, "no data")
    if kind == VARYING:
        if n:
            source.offsets = data + at * source.width
            source.first = max(load_int(data + array.offset * source.width, source.width), 0)
            source.last = load_int(data + (array.offset + array.length) * source.width, source.width)
            if array.buffers[2] == NULL and source.last > source.first:
                raise _broken(table, column, "no data")
            # Where all are empty there need be no data; a pointer there must be all the same.
            source.data = _EMPTY if array.buffers[2] == NULL else <const char *>array.buffers[2]
        return 0
    if data == NULL:
        data = _EMPTY
    source.data = data if kind == BIT or n == 0 else data + at * source.width
    if kind == VIEW:
        source.n_heaps = array.n_buffers - 3
        source.heaps = <const char **>&array.buffers[2]
        source.heap_sizes = <const int64_t *>array.buffers[array.n_buffers - 1]
        if source.n_heaps and source.heap_sizes == NULL:
            raise _broken(table, column, "no lengths of its buffers")
    elif kind == DICTIONARY:
        if array.dictionary == NULL:
            raise _broken(table, column, "no dictionary")
        source.n_dictionary = array.dictionary.length
        _fill(piece.dictionary, table, column, array.dictionary, 0, array.dictionary.length)
        source.has_nulls = source.has_nulls or piece.dictionary.source.has_nulls
    return 0


cdef object _broken(str table, object column, str what):
    return ValidationError(table, column.name, what, "cannot be in an Arrow array")


cdef bint is_arrow(object value):
    return not isinstance(value, type) and (hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__"))


cdef ArrowStream open_arrow(str table, object value, bint as_table):
    """Take over what the value hands out: a table, or the arrays of one column."""
    cdef ArrowStream opened = ArrowStream.__new__(ArrowStream)
    cdef ArrowArrayStream *stream
    cdef ArrowSchema *schema
    cdef ArrowArray *array
    opened.table = table
    opened.as_table = as_table
    if hasattr(value, "__arrow_c_stream__"):
        capsule = value.__arrow_c_stream__()
        stream = <ArrowArrayStream *>PyCapsule_GetPointer(capsule, "arrow_array_stream")
        if stream.release == NULL:
            raise PgtickError(f"{table}: the Arrow stream was read already")
        opened.stream = stream[0]
        stream.release = NULL
        opened.check(opened.stream.get_schema(&opened.stream, &opened.schema))
    else:
        schema_capsule, array_capsule = value.__arrow_c_array__()
        schema = <ArrowSchema *>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
        array = <ArrowArray *>PyCapsule_GetPointer(array_capsule, "arrow_array")
        if schema.release == NULL or array.release == NULL:
            raise PgtickError(f"{table}: the Arrow array was taken already")
        opened.only = ArrowBatch.__new__(ArrowBatch)
        opened.schema = schema[0]
        schema.release = NULL
        opened.only.array = array[0]
        array.release = NULL
    schema = &opened.schema
    if (
        schema.release == NULL or schema.format == NULL
        or schema.n_children < 0 or schema.n_children and schema.children == NULL
    ):
        raise PgtickError(f"{table}: the Arrow schema is empty")
    if as_table and schema.format[:2] != b"+s":
        raise ValidationError(table, "*", _name(schema.format.decode("utf-8", "replace")), "must be a table")
    return opened
