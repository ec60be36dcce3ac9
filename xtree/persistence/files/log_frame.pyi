from collections.abc import Sequence
from typing import Any

class LogTail:
    end_offset: int
    boundary: int
    last_epoch: int
    last_crc: int
    def __init__(
        self, uuid: bytes, number: int, mode: int, end_offset: int, last_epoch: int, last_crc: int
    ) -> None: ...
    @property
    def number(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def next_frame(self) -> int: ...

class LogFrame:
    @property
    def offset(self) -> int: ...
    @property
    def end_offset(self) -> int: ...
    @property
    def first_epoch(self) -> int: ...
    @property
    def last_epoch(self) -> int: ...
    @property
    def crc(self) -> int: ...
    def __len__(self) -> int: ...

def frame_of(
    tail: LogTail,
    kind: int,
    first_epoch: int,
    last_epoch: int,
    durable_through: int,
    deltas: Sequence[Any],
    catalog: bytes,
    catalog_count: int,
    payloads: Sequence[Any],
) -> LogFrame: ...
