from typing import Any

from xtree.persistence.store.write_set import WriteSet

def touched_windows(ws: WriteSet, largest_payload: int) -> tuple[set[int], set[int]]: ...
def deltas_of(
    ws: WriteSet, epoch: int, largest_payload: int, payload_base: int, file_numbers: list[int], log_number: int
) -> tuple[bytearray, int, list[Any], int]: ...
