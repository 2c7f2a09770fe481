"""PostgreSQL's COPY BINARY to columns, chunk by chunk, without the GIL and without an object a value.

A row is decoded field by field into the columns' memory at its own index. Where its bytes end early, it is
decoded again when more have come: all it wrote lies at that index, so nothing must be undone. Bytes that no
server sends are an error with their place; so is a value that the form asked for cannot hold.
Format: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from pgtick._fast.result cimport Columns, Store, column_store
from pgtick._fast.fields cimport (
    FAR_TIME, INFINITE_TIME, NO_MEMORY, NOT_A_BOOL, NOT_JSONB, NOT_UTF8, WRONG_LENGTH, decode_field, null_field,
)
from pgtick._fast.memory cimport release, resize
from pgtick._fast.numeric_out cimport INEXACT, MALFORMED, NOT_FINITE, TOO_LARGE
from pgtick._fast.objects cimport numeric_text
from pgtick._fast.wire cimport get16, get32

from operator import itemgetter as _itemgetter

from pgtick.errors import DecodeError as _DecodeError, short_repr as _short_repr

cdef enum Stage:
    HEADER
    EXTENSION
    ROWS
    DONE

# What can be wrong with the stream; the codes of fields and numeric_out come first.
cdef enum:
    IMPOSSIBLE_LENGTH = 32
    FIELD_COUNT
    SIGNATURE
    FLAGS
    EXTENSION_LENGTH
    GARBAGE

_REASONS = {
    MALFORMED: "is no numeric",
    NOT_FINITE: "is not finite: only float64 holds it",
    INEXACT: "has more decimals than the scale asked for",
    TOO_LARGE: "is too large for the form asked for",
    WRONG_LENGTH: "has a length that its type never has",
    NOT_A_BOOL: "is no bool",
    NOT_UTF8: "is not valid UTF-8",
    NOT_JSONB: "is no jsonb of version 1",
    INFINITE_TIME: "is no date or time here: select NULLIF(…, 'infinity')",
    FAR_TIME: "is too far in the future for 64 bits of microseconds",
    IMPOSSIBLE_LENGTH: "has a length that no field has",
    FIELD_COUNT: "the row has another number of fields than the query has columns",
    SIGNATURE: "the stream does not begin as COPY BINARY does",
    FLAGS: "the header has a flag that is not known",
    EXTENSION_LENGTH: "the header's extension has a negative length",
    GARBAGE: "there are bytes behind the trailer",
}

# A header without flags, and the longest field that PostgreSQL can make.
cdef const char *_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
cdef enum:
    HEADER_SIZE = 19
    FIRST_ROOM = 1024
    MAX_FIELD = 0x3FFFFFFF


@cython.final
cdef class CopyDecoder:
    """Takes a stream in pieces of any size and gives its rows as Columns.

    ``columns``: a (name, type OID, decimals) each, decimals being ("float",), ("decimal",), ("fixed", scale) or
    ("decimal128", precision, scale). ``max_rows``: decoding pauses there, until ``take()``. After a DecodeError
    every call raises it again. Not for use by two threads at once.
    """

    cdef tuple names
    cdef object error
    cdef Store *stores
    cdef int n_columns
    cdef Stage stage
    cdef Py_ssize_t skip  # what is left of the header's extension
    cdef Py_ssize_t room
    cdef Py_ssize_t max_rows
    cdef Py_ssize_t row  # complete rows in the stores
    cdef Py_ssize_t n_taken
    cdef Py_ssize_t n_fed
    cdef char *pending  # what is not decoded yet, from `start` on
    cdef Py_ssize_t start
    cdef Py_ssize_t pending_size
    cdef Py_ssize_t pending_room
    cdef Py_ssize_t needed  # so many bytes must be pending before decoding gets any further
    # What went wrong, and where: filled without the GIL.
    cdef int trouble
    cdef int trouble_column
    cdef Py_ssize_t trouble_offset
    cdef const char *trouble_value
    cdef Py_ssize_t trouble_length

    def __cinit__(self, columns, max_rows=None):
        cdef int i
        columns = list(columns)
        self.names = tuple(map(_itemgetter(0), columns))
        self.max_rows = <Py_ssize_t>(1 << 62) if max_rows is None else max_rows
        if self.max_rows < 1 or not 0 < len(columns) < 1 << 15:
            raise ValueError("a chunk has at least one row, and a row at least one column")
        self.stores = <Store *>malloc(len(columns) * sizeof(Store))
        if self.stores == NULL:
            raise MemoryError
        memset(self.stores, 0, len(columns) * sizeof(Store))
        self.n_columns = <int>len(columns)
        for i in range(self.n_columns):
            column_store(&self.stores[i], columns[i][1], columns[i][2])

    def __dealloc__(self):
        self._free_stores()
        free(self.stores)
        free(self.pending)

    @property
    def n_rows(self):
        """Rows decoded so far, those already taken included."""
        return self.n_taken + self.row

    @property
    def n_bytes(self):
        """Bytes fed so far."""
        return self.n_fed

    @property
    def full(self):
        """Whether ``max_rows`` rows wait to be taken."""
        return self.row >= self.max_rows

    def feed(self, const uint8_t[::1] data not None):
        """Decode what can be decoded; ``feed(b"")`` goes on after ``take()``."""
        cdef Py_ssize_t size = data.shape[0], used = 0
        cdef const char *p = <const char *>&data[0] if size else NULL
        if self.error is not None:
            raise self.error
        self.n_fed += size
        if self.pending_size:
            self._keep(p, size)
            p = self.pending + self.start
            size = self.pending_size
            if size >= self.needed:
                with nogil:
                    used = self._decode(p, size)
                self.start += used
                self.pending_size -= used
        else:
            with nogil:
                used = self._decode(p, size)
            if not self.trouble:
                self._keep(p + used, size - used)
        if self.trouble:
            self._raise(size)

    def take(self):
        """Return the rows decoded since the last ``take()``; their memory is the Columns' from then on."""
        cdef Columns out = Columns.__new__(Columns)
        cdef int i
        if self.error is not None:
            raise self.error
        if self.room == 0 and not self._grow(1):
            raise MemoryError
        out.names = self.names
        out.n_rows = self.row
        out.first_row = self.n_taken
        for i in range(self.n_columns):
            out.add(&self.stores[i])
        self.n_taken += self.row
        self.row = self.room = 0
        self.needed = 0
        return out

    def finish(self):
        """Check that the stream has come to its end; DecodeError where it was cut off."""
        if self.error is not None:
            raise self.error
        if self.stage != DONE:
            what = "before the first row" if self.stage < ROWS else "without its trailer"
            row = self.n_taken + self.row if self.stage == ROWS else None
            self.error = _DecodeError(f"the stream ends {what}", offset=self.n_fed, row=row)
            raise self.error

    cdef Py_ssize_t _decode(self, const char *data, Py_ssize_t size) noexcept nogil:
        """Decode as far as it goes; returns how many bytes that took, or fills ``trouble``."""
        cdef Py_ssize_t at = 0, used
        self.needed = 0
        if self.stage == HEADER:
            if size < HEADER_SIZE:
                self.needed = HEADER_SIZE
                return 0
            if memcmp(data, _SIGNATURE, 11) != 0:
                return self._wrong(SIGNATURE, data, data, -1)
            # The upper half of the flags changes the format (bit 16: OIDs, of old); the lower may be passed over.
            if get32(data + 11) >> 16:
                return self._wrong(FLAGS, data, data + 11, -1)
            self.skip = <int32_t>get32(data + 15)
            if self.skip < 0:
                return self._wrong(EXTENSION_LENGTH, data, data + 15, -1)
            at = HEADER_SIZE
            self.stage = EXTENSION
        if self.stage == EXTENSION:
            used = min(self.skip, size - at)
            at += used
            self.skip -= used
            if self.skip:
                return at
            self.stage = ROWS
        while self.stage == ROWS and self.row < self.max_rows:
            if size - at < 2:
                self.needed = 2
                break
            if get16(data + at) == 0xFFFF:
                at += 2
                self.stage = DONE
                break
            if get16(data + at) != self.n_columns:
                return self._wrong(FIELD_COUNT, data, data + at, -1)
            if self.row == self.room and not self._grow(max(2 * self.room, FIRST_ROOM)):
                return self._wrong(NO_MEMORY, data, data + at, -1)
            used = self._row(data, data + at, data + size)
            if used <= 0:
                break
            at += used
            self.row += 1
        if self.stage == DONE and at < size:
            return self._wrong(GARBAGE, data, data + at, -1)
        return at

    cdef Py_ssize_t _row(self, const char *data, const char *start, const char *end) noexcept nogil:
        """Decode one row; returns its length, or 0 where it is not whole or something is wrong."""
        cdef const char *p = start + 2
        cdef int i, wrong
        cdef int32_t length
        for i in range(self.n_columns):
            if end - p < 4:
                self.needed = p - start + 4
                return 0
            length = <int32_t>get32(p)
            if length == -1:
                wrong = null_field(&self.stores[i], self.row, self.room)
                length = 0
            elif length < 0 or length > MAX_FIELD:
                self.trouble_value = p
                self.trouble_length = 4
                return self._wrong(IMPOSSIBLE_LENGTH, data, p, i)
            elif end - p - 4 < length:
                self.needed = p - start + 4 + length
                return 0
            else:
                wrong = decode_field(&self.stores[i], self.row, p + 4, length)
            if wrong:
                self.trouble_value = p + 4
                self.trouble_length = length
                return self._wrong(wrong, data, p + 4, i)
            p += 4 + length
        return p - start

    cdef Py_ssize_t _wrong(self, int trouble, const char *data, const char *at, int column) noexcept nogil:
        self.trouble = trouble
        self.trouble_offset = at - data
        self.trouble_column = column
        return 0

    cdef bint _grow(self, Py_ssize_t room) noexcept nogil:
        """Make room for so many rows. Where memory ends, every column is as it was."""
        cdef int i
        cdef Py_ssize_t old
        cdef void *memory
        cdef Store *store
        room = min(room, self.max_rows)
        for i in range(self.n_columns):
            store = &self.stores[i]
            memory = resize(store.values, room * store.width if store.width else 8 * (room + 1))
            if memory == NULL:
                return False
            store.values = <char *>memory
            if store.width == 0 and self.room == 0:
                (<int64_t *>store.values)[0] = 0
            if store.valid != NULL:
                old = (self.room + 7) // 8
                memory = resize(store.valid, (room + 7) // 8)
                if memory == NULL:
                    return False
                store.valid = <uint8_t *>memory
                memset(store.valid + old, 0xFF, (room + 7) // 8 - old)
        self.room = room
        return True

    cdef int _keep(self, const char *p, Py_ssize_t size) except -1:
        """Append to what is pending."""
        cdef Py_ssize_t size_then = self.pending_size + size, room
        cdef char *memory
        if size == 0:
            return 0
        if self.start:
            memmove(self.pending, self.pending + self.start, self.pending_size)
            self.start = 0
        if size_then > self.pending_room:
            room = max(size_then, 2 * self.pending_room)
            memory = <char *>realloc(self.pending, room)
            if memory == NULL:
                raise MemoryError
            self.pending = memory
            self.pending_room = room
        memcpy(self.pending + self.pending_size, p, size)
        self.pending_size = size_then
        return 0

    cdef int _raise(self, Py_ssize_t size) except -1:
        """Raise what ``trouble`` says of the last ``size`` bytes fed."""
        cdef int trouble = self.trouble, column = self.trouble_column
        if trouble == NO_MEMORY:
            self.error = MemoryError()
            raise self.error
        reason = _REASONS[trouble]
        if column >= 0:
            if trouble in (INEXACT, TOO_LARGE):
                value = numeric_text(self.trouble_value, self.trouble_length)[:80]
            elif trouble == NOT_FINITE:
                value = {0xD000: "Infinity", 0xF000: "-Infinity"}.get(get16(self.trouble_value + 4), "NaN")
            elif trouble == INFINITE_TIME:
                value = "-infinity" if self.trouble_value[0] & 0x80 else "infinity"
            else:
                value = _short_repr(self.trouble_value[:min(self.trouble_length, 80)])
            reason = f"{value} {reason}"
        self.error = _DecodeError(
            reason,
            offset=self.n_fed - size + self.trouble_offset,
            row=self.n_taken + self.row if self.stage == ROWS else None,
            column=self.names[column] if column >= 0 else None,
        )
        raise self.error

    cdef void _free_stores(self) noexcept:
        cdef int i
        for i in range(self.n_columns):
            release(self.stores[i].values)
            release(self.stores[i].data)
            release(self.stores[i].valid)
            self.stores[i].values = self.stores[i].data = NULL
            self.stores[i].valid = NULL
