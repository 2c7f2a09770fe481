from typing import final

@final
class Columns: ...
