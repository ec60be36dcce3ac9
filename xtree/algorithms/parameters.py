"""TreeParameters: the settings of one tree, checked when the object is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xtree.persistence.base.config import PAGE_BYTES, check_number, check_whole

__all__ = ["TreeParameters"]

LEAST_SHARE = 0.01


@dataclass(frozen=True)
class TreeParameters:
    """Settings that are fixed when a tree is made, and stored with it. Raises ValueError or TypeError as Config does.

    - `page_bytes`: size of a page that isn't a supernode; None picks the smallest that holds 48 entries.
    - `max_overlap`: a topological split of a directory page that overlaps by more than this share is refused; 1.0
      refuses none, so that the tree is an R*-tree, without supernodes.
    - `min_fanout`: the least share of entries that the smaller side of an overlap-minimal split holds.
    - `min_fill`: the least share that a split leaves on either side; a leaf below it is dissolved, and a directory page
      below it and `min_fanout`. At most 0.5.
    - `leaf_fill`: how full bulk load packs leaves, at least twice `min_fill`; the space left free takes the
      first inserts without a split. With 0.8 these are as fast as into a tree that grew, for a quarter more space.
    """

    TREE: ClassVar[tuple[str, ...]] = ("page_bytes", "max_overlap", "min_fanout", "min_fill", "leaf_fill")

    page_bytes: int | None = None
    max_overlap: float = 0.2
    min_fanout: float = 0.35
    min_fill: float = 0.4
    leaf_fill: float = 0.98

    def __post_init__(self) -> None:
        if self.page_bytes is not None:
            check_whole(self, "page_bytes", PAGE_BYTES[0], PAGE_BYTES[-1])
            if self.page_bytes not in PAGE_BYTES:
                sizes = " or ".join(map(str, PAGE_BYTES))
                raise ValueError(f"page_bytes must be None or one of {sizes}, not {self.page_bytes}")
        check_number(self, "max_overlap", 0.0, 1.0)
        check_number(self, "min_fanout", LEAST_SHARE, 0.5)
        check_number(self, "min_fill", LEAST_SHARE, 0.5)
        check_number(self, "leaf_fill", 2 * self.min_fill, 1.0)  # else bulk load couldn't even out its last two pages

    def tree_parameters(self) -> dict[str, int | float | None]:
        """The fields that are stored with each tree that is made."""
        return {name: getattr(self, name) for name in self.TREE}
