from typing import final

@final
class Piece: ...
