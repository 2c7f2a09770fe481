from typing import final

@final
class Row: ...

@final
class Tables: ...
