from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, final

from pgtick._fast.batch import EncodedBatch
from pgtick.tables import Table

def content_number(data: bytes) -> int: ...

@final
class RowEncoder:
    def __new__(cls, table: Table) -> Self: ...
    def encode(self, rows: Iterable[object], *, time_unit: str | None = None) -> EncodedBatch: ...
    def append(self, batch: EncodedBatch, row: object, index: int, /, *, time_unit: str | None = None) -> bool: ...
    def extend(
        self,
        batch: EncodedBatch,
        rows: Iterable[object],
        index: int,
        limit: int,
        /,
        *,
        time_unit: str | None = None,
    ) -> int: ...
    def encode_columns(
        self,
        columns: object,
        *,
        time_unit: str | None = None,
        scales: Mapping[str, int] | None = None,
        masks: Mapping[str, object] | None = None,
    ) -> EncodedBatch: ...
    def column_batches(
        self,
        columns: object,
        n_rows: int,
        *,
        time_unit: str | None = None,
        scales: Mapping[str, int] | None = None,
        masks: Mapping[str, object] | None = None,
        refused: list[tuple[tuple[Any, ...], dict[str, object]]] | None = None,
    ) -> Iterator[EncodedBatch]: ...
    def values(self, batch: EncodedBatch, row: int) -> tuple[Any, ...]: ...
    def canonical(self, row: object, *, time_unit: str | None = None) -> tuple[Any, ...]: ...
