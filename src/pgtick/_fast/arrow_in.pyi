from typing import final

@final
class ArrowBatch: ...

@final
class ArrowStream: ...
