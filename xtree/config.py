"""Config: the settings of an index and its trees, checked when it is made."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

from xtree.algorithms.parameters import TreeParameters
from xtree.persistence.base.config import StoreConfig

__all__ = ["Config"]


@dataclass(frozen=True, init=False, repr=False)
class Config(TreeParameters, StoreConfig):
    """Settings of a durable index and of its trees. docs/choosing.md says when to change which.

    Fixed when a directory is created, stored in its manifest, and then the same at every open:

    - `window_bytes`: the largest size of a data file; a multiple of 1 MiB.

    Fixed when a tree is created and stored with that tree; a new value applies to trees made from now on:

    - `page_bytes`: size of a page that is no supernode; None picks the smallest that holds 48 entries.
    - `max_overlap`: a topological split of a directory page is refused when its halves overlap by more than this
      share; 1.0 refuses none, which makes the tree an R*-tree, without supernodes.
    - `min_fill`: a split leaves at least this share on either side, and a page that falls below it is dissolved; at
      most 0.5.
    - `leaf_fill`: how full bulk load packs leaves, at least twice `min_fill`; the room that is left takes the first
      inserts without a split. With 0.8 they are as fast as into a tree that grew, for a quarter more space.

    Chosen anew at every open:

    - `durability`: when a commit counts as done. "balanced": once its log frame is on the disk; "strict": once its
      pages, its frame and a superblock that names it are on the disk; "eventual": once the operating system has its
      frame.
    - `sync_interval_ms`: with "eventual", the longest time that a written frame waits for a sync of the log to begin.
    - `group_window_ms`: the least time from one group of commits to the next; the commits of a group share a sync.
      With 0 a commit that comes alone never waits. No effect with "eventual".
    - `mapping_budget`: how many data files stay mapped. A target: while long calls use more files, more are mapped.
    - `descriptor_budget`: how many data files stay open. A target too: a file that waits for a sync stays open anyway.
    - `slow_reader_s`: the age, in seconds, from which stats() counts a snapshot, query or transaction as a slow reader.
    - `checkpoint_log_bytes`: a checkpoint is due after this many bytes of log since the last one; while the log grows
      fast, after 256 MiB if that is more.
    - `checkpoint_interval_s`: a checkpoint is due this long after the first commit that the last one doesn't hold.
    - `log_limit_bytes`, `backpressure_timeout_s`: once so many bytes of log are in no checkpoint, transactions wait for
      a checkpoint before they begin; one without a timeout of its own waits up to `backpressure_timeout_s`.
    - `checkpoints_kept`: how many checkpoints are kept, with the logs that follow the oldest of them; at least 1.
    - `reserve_bytes`: data files leave this many bytes of a disk free, so that records can still be deleted and
      checkpoints written when the disk is full.

    Immutable. Fields of earlier versions are accepted, and do what they did, with a DeprecationWarning. Raises
    ValueError or TypeError, naming the field, for a value that can't work.
    """

    def __init__(
        self,
        durability: str = StoreConfig.durability,
        sync_interval_ms: int = StoreConfig.sync_interval_ms,
        group_window_ms: float = StoreConfig.group_window_ms,
        window_bytes: int = StoreConfig.window_bytes,
        *,
        mapping_budget: int = StoreConfig.mapping_budget,
        descriptor_budget: int = StoreConfig.descriptor_budget,
        slow_reader_s: float = StoreConfig.slow_reader_s,
        checkpoint_log_bytes: int = StoreConfig.checkpoint_log_bytes,
        checkpoint_interval_s: float = StoreConfig.checkpoint_interval_s,
        log_limit_bytes: int = StoreConfig.log_limit_bytes,
        backpressure_timeout_s: float = StoreConfig.backpressure_timeout_s,
        checkpoints_kept: int = StoreConfig.checkpoints_kept,
        reserve_bytes: int = StoreConfig.reserve_bytes,
        page_bytes: int | None = TreeParameters.page_bytes,
        max_overlap: float = TreeParameters.max_overlap,
        min_fill: float = TreeParameters.min_fill,
        leaf_fill: float = TreeParameters.leaf_fill,
        **earlier: Any,
    ) -> None:
        given = {**locals(), **earlier}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if unknown := earlier.keys() - defaults.keys():
            raise TypeError(f"Config has no field {', '.join(map(repr, sorted(unknown)))}")
        for name, value in earlier.items():
            if value != defaults[name]:  # dataclasses.replace gives every field
                warnings.warn(f"Config.{name} will go: nobody needs it", DeprecationWarning, stacklevel=2)
        for name, default in defaults.items():
            object.__setattr__(self, name, given.get(name, default))
        self.__post_init__()

    def __post_init__(self) -> None:
        StoreConfig.__post_init__(self)
        TreeParameters.__post_init__(self)

    def __repr__(self) -> str:
        chosen = (field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default)
        return f"Config({', '.join(f'{name}={getattr(self, name)!r}' for name in chosen)})"
