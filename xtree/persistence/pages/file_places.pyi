from typing import final

@final
class FilePlaces:
    slots: int
    def __new__(cls, files: dict[int, tuple[int, int]], window_bytes: int) -> FilePlaces: ...
