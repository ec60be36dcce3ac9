from collections.abc import Sequence

from typing_extensions import Buffer

from xtree.persistence.pages.file_places import FilePlaces
from xtree.persistence.pages.object_table import ObjectTable

ROW_BYTES: int

def restore_table(
    table: ObjectTable, epoch: int, handles: Sequence[int], tags: Buffer, rows: Buffer, places: FilePlaces
) -> None: ...
def snapshot_table(
    table: ObjectTable, epoch: int, file_of_window: list[int]
) -> tuple[list[int], bytearray, bytearray]: ...
