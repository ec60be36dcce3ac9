from typing import final

from typing_extensions import Buffer

PROBLEMS: tuple[str, ...]

@final
class FrameRun:
    path: str
    count: int
    start: int
    chunk: Buffer
    offset: int
    end_offset: int
    def __new__(cls, path: str, chunk: Buffer, start: int) -> FrameRun: ...
    def place(self, i: int) -> tuple[int, int]: ...
    def __len__(self) -> int: ...

@final
class FrameChain:
    path: str
    number: int
    end_offset: int
    last_epoch: int
    last_crc: int
    problem: str
    wanted_at: int
    wanted_bytes: int
    def __new__(
        cls, path: str, uuid: bytes, number: int, end_offset: int, last_crc: int, last_epoch: int
    ) -> FrameChain: ...
    def follow(
        self, chunk: Buffer, start: int, limit: int, kind: int, most: int, exposed_through: int
    ) -> FrameRun: ...
