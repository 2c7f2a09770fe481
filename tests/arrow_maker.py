"""Arrow arrays laid out by hand in ctypes, so that they can be wrong in every way; releases are counted."""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Any

Pointer = ctypes.POINTER


class ArrowSchema(ctypes.Structure):
    pass


class ArrowArray(ctypes.Structure):
    pass


class ArrowStream(ctypes.Structure):
    pass


RELEASE_SCHEMA = ctypes.CFUNCTYPE(None, Pointer(ArrowSchema))
RELEASE_ARRAY = ctypes.CFUNCTYPE(None, Pointer(ArrowArray))
RELEASE_STREAM = ctypes.CFUNCTYPE(None, Pointer(ArrowStream))
GET_SCHEMA = ctypes.CFUNCTYPE(ctypes.c_int, Pointer(ArrowStream), Pointer(ArrowSchema))
GET_NEXT = ctypes.CFUNCTYPE(ctypes.c_int, Pointer(ArrowStream), Pointer(ArrowArray))
GET_ERROR = ctypes.CFUNCTYPE(ctypes.c_void_p, Pointer(ArrowStream))

ArrowSchema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", Pointer(Pointer(ArrowSchema))),
    ("dictionary", Pointer(ArrowSchema)),
    ("release", RELEASE_SCHEMA),
    ("private_data", ctypes.c_void_p),
]
ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", Pointer(ctypes.c_void_p)),
    ("children", Pointer(Pointer(ArrowArray))),
    ("dictionary", Pointer(ArrowArray)),
    ("release", RELEASE_ARRAY),
    ("private_data", ctypes.c_void_p),
]
ArrowStream._fields_ = [
    ("get_schema", GET_SCHEMA),
    ("get_next", GET_NEXT),
    ("get_last_error", GET_ERROR),
    ("release", RELEASE_STREAM),
    ("private_data", ctypes.c_void_p),
]

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Column:
    """A column: its format, its buffers (bytes, or None for NULL), and what it says of them."""

    def __init__(
        self,
        name: str,
        form: str,
        buffers: list[bytes | None],
        n: int,
        *,
        offset: int = 0,
        nulls: int = -1,
        dictionary: Column | None = None,
        n_buffers: int | None = None,
    ) -> None:
        self.held = [None if buffer is None else ctypes.create_string_buffer(buffer, len(buffer)) for buffer in buffers]
        addresses = [None if held is None else ctypes.addressof(held) for held in self.held]
        self.schema = ArrowSchema(form.encode(), name.encode())
        self.array = ArrowArray(n, nulls, offset, len(buffers) if n_buffers is None else n_buffers)
        self.array.buffers = (ctypes.c_void_p * len(buffers))(*addresses)
        self.dictionary = dictionary
        if dictionary is not None:
            self.schema.dictionary = ctypes.pointer(dictionary.schema)
            self.array.dictionary = ctypes.pointer(dictionary.array)


class Made:
    """A table of columns that hands itself over as one array or, with ``chunks``, as a stream of so many."""

    def __init__(
        self, *columns: Column, n: int | None = None, offset: int = 0, chunks: int = 1, fails: int = 0
    ) -> None:
        self.released: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.columns = columns
        self.n = columns[0].array.length if n is None else n
        self.offset = offset
        self.left = chunks
        self.fails = fails
        self.message = ctypes.create_string_buffer(b"the disk is gone")
        self.held: list[Any] = []

    def _release(self, kind: str, function: Any) -> Any:
        def release(pointer: Any) -> None:
            self.released[kind] += 1
            pointer.contents.release = function()

        kept = function(release)
        self.held.append(kept)
        return kept

    def schema(self) -> ArrowSchema:
        self.taken["schema"] += 1
        made = ArrowSchema(b"+s", b"")
        made.n_children = len(self.columns)
        made.children = (Pointer(ArrowSchema) * len(self.columns))(*[ctypes.pointer(c.schema) for c in self.columns])
        made.release = self._release("schema", RELEASE_SCHEMA)
        self.held.append(made)
        return made

    def array(self) -> ArrowArray:
        self.taken["array"] += 1
        made = ArrowArray(self.n, 0, self.offset, 1, len(self.columns))
        made.buffers = (ctypes.c_void_p * 1)(None)
        made.children = (Pointer(ArrowArray) * len(self.columns))(*[ctypes.pointer(c.array) for c in self.columns])
        made.release = self._release("array", RELEASE_ARRAY)
        self.held.append(made)
        return made

    def _capsule(self, struct: Any, name: bytes) -> Any:
        self.held.append(struct)
        return _new_capsule(ctypes.addressof(struct), name, None)


class OneArray(Made):
    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        return self._capsule(self.schema(), b"arrow_schema"), self._capsule(self.array(), b"arrow_array")


class Stream(Made):
    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        def get_schema(_: Any, out: Any) -> int:
            out[0] = self.schema()
            return 0

        def get_next(_: Any, out: Any) -> int:
            if self.left == 0:
                if self.fails:
                    return self.fails
                out[0] = ArrowArray()
                return 0
            self.left -= 1
            out[0] = self.array()
            return 0

        self.taken["stream"] += 1
        stream = ArrowStream(
            GET_SCHEMA(get_schema), GET_NEXT(get_next), GET_ERROR(lambda _: ctypes.addressof(self.message))
        )
        stream.release = self._release("stream", RELEASE_STREAM)
        return self._capsule(stream, b"arrow_array_stream")
