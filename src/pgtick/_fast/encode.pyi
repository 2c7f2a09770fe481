from collections.abc import Iterable, Mapping
from typing import Any, Self, final

from pgtick._fast.batch import EncodedBatch
from pgtick.tables import Table

def content_number(data: bytes) -> int: ...

@final
class RowEncoder:
    def __new__(cls, table: Table) -> Self: ...
    def encode(self, rows: Iterable[object], *, time_unit: str | None = None) -> EncodedBatch: ...
    def encode_columns(
        self,
        columns: object,
        *,
        time_unit: str | None = None,
        scales: Mapping[str, int] | None = None,
        masks: Mapping[str, object] | None = None,
    ) -> EncodedBatch: ...
    def canonical(self, row: object, *, time_unit: str | None = None) -> tuple[Any, ...]: ...
