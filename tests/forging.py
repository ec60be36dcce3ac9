"""Pages changed without a change of their CRC, so that only a look at what they say can tell."""

from __future__ import annotations

import numpy as np

from xtree.persistence.page_checksum import page_crc_of


def keeping_its_crc(page: bytes, changes: dict[int, bytes], free: int) -> bytes:
    """The page with bytes replaced, by offset, and with the 4 bytes at `free` such that its CRC stays what it was.

    A CRC is linear: each of the 32 bits at `free` flips a fixed set of its bits, whatever else the page holds.
    """
    changed = bytearray(page)
    for at, new in changes.items():
        changed[at:at + len(new)] = new
    changed[free:free + 4] = bytes(4)
    blank = page_crc_of(bytes(changed))
    columns = []
    for bit in range(32):
        changed[free:free + 4] = (1 << bit).to_bytes(4, "little")
        columns.append(page_crc_of(bytes(changed)) ^ blank)
    changed[free:free + 4] = solve(columns, blank ^ page_crc_of(page)).to_bytes(4, "little")
    assert page_crc_of(bytes(changed)) == page_crc_of(page)
    return bytes(changed)


def solve(columns: list[int], wanted: int) -> int:
    """Which columns, as a bit set, have the exclusive or `wanted`."""
    matrix = np.array([[column >> row & 1 for column in columns] + [wanted >> row & 1] for row in range(32)], np.uint8)
    for pivot in range(32):
        row = pivot + int(np.argmax(matrix[pivot:, pivot]))
        assert matrix[row, pivot]
        matrix[[pivot, row]] = matrix[[row, pivot]]
        others = (matrix[:, pivot] == 1) & (np.arange(32) != pivot)
        matrix[others] ^= matrix[pivot]
    return sum(int(bit) << row for row, bit in enumerate(matrix[:, 32]))
