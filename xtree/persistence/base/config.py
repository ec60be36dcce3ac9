"""StoreConfig: the settings of a store, checked when it is made; and the checks of such fields."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

DURABILITY_MODES = ("strict", "balanced", "eventual")
PAGE_BYTES = tuple(4 * KIB << size_class for size_class in range(7))
MAX_WINDOW_BYTES = 1 << 40
MAX_EPOCH = 1 << 62  # no commit gets a higher one: sums with strides stay far from 64 bits
LONGEST_S = 1e9


@dataclass(frozen=True)
class StoreConfig:
    """Settings of a durable store. Raises ValueError or TypeError, naming the field, for what can't work.

    Fixed when a directory is created, stored in its manifest, and then the same at every open (`StoreConfig.STORED`):

    - `window_bytes`: the largest size of a data file; a multiple of 1 MiB.

    Taken anew at every open:

    - `durability`: when a commit counts as done. "balanced": once its log frame is on the disk; "strict": once its
      pages, its frame and a superblock that names it are; "eventual": once the operating system has its frame.
    - `sync_interval_ms`: with "eventual", the longest time from the write of a frame until a sync of the log begins.
    - `group_window_ms`: the least time from one group of commits to the next; the commits of a group share a sync. With
      0, a commit that comes alone never waits. Has no effect with "eventual".
    - `data_file_first_bytes`: disk space reserved when a data file is made.
    - `data_file_bytes`: the size from which a data file isn't grown any more, and a new one is made; but each file has
      room for a page. A multiple of 4 KiB, at most `window_bytes`; None stands for `window_bytes`. Longer files stay as
      they are.
    - `mapping_budget`: how many data files stay mapped. A target: while long calls use more of them, more are mapped.
    - `descriptor_budget`: how many data files stay open. A target too: a file that waits for a sync stays open anyway.
    - `slow_reader_s`: the age, in seconds, from which stats() counts a snapshot, query or transaction as a slow reader.
    - `max_payload_in_wal`: a page above this size is written to its data file instead of the log, in bytes.
    - `bulk_payload_limit`: a transaction with more bytes of new pages than this writes all of them to data files.
    - `checkpoint_log_bytes`: a checkpoint is due when the log has grown by so many bytes since the last one. But if the
      log grows so fast that it would reach `checkpoint_burst_log_bytes` before `checkpoint_interval_s` has passed, the
      checkpoint is due at that size (if it is the larger one), or after `checkpoint_burst_epochs` commits.
    - `checkpoint_interval_s`, `checkpoint_idle_s`: a checkpoint is due `checkpoint_interval_s` after the first commit
      that the last checkpoint doesn't hold, or `checkpoint_idle_s` after the latest commit.
    - `checkpoint_min_interval_s`: the least time from a checkpoint to the next one that nobody asked for.
    - `wal_fill_bytes`, `wal_fill_limit_bytes`: a log is filled with zeros ahead of need, first by `wal_fill_bytes`,
      then by twice as much each time, up to `wal_fill_limit_bytes`.
    - `wal_segment_bytes`: how far a log made ahead of need is filled at most; each is filled twice as far as the one
      before, up to this size.
    - `wal_rotate_bytes`, `wal_rotate_age_s`: the size and the age at which a log is followed by the next one.
    - `gc_on_checkpoint`, `gc_on_rotate`: whether logs that none of the kept checkpoints needs are deleted after a
      checkpoint, and after a change of logs; one of the two must be true.
    - `gc_keep_logs`, `gc_min_age_s`: how many closed logs stay in any case, and for how long each stays. A clean close
      and a full disk override both.
    - `gc_lag_checkpoints`: how many checkpoints must follow the first one that makes a log unnecessary; at least
      `checkpoints_kept` - 1, which None stands for.
    - `log_limit_bytes`, `backpressure_timeout_s`: with `log_limit_bytes` of log that no checkpoint holds, transactions
      wait for a checkpoint before they begin; those without a timeout of their own wait `backpressure_timeout_s`.
    - `epoch_stride`: by how many epochs the ceiling in the superblock is raised at a time.
    - `checkpoints_kept`: how many checkpoints stay, with the logs that follow the oldest of them; at least 1.
    - `shard_rows`: how many pages a part of the object table gets before it is the turn of the next one; there are up
      to 64.
    - `reserve_bytes`: data files leave so many bytes of the disk free, so that pages of an index on a full disk can
      still be deleted, and the index checkpointed.
    """

    STORED: ClassVar[tuple[str, ...]] = ("window_bytes",)

    durability: str = "balanced"
    sync_interval_ms: int = 100
    group_window_ms: float = 0.0
    window_bytes: int = GIB
    data_file_first_bytes: int = 64 * KIB
    data_file_bytes: int | None = None
    mapping_budget: int = 64
    descriptor_budget: int = 16
    slow_reader_s: float = 60.0
    max_payload_in_wal: int = 64 * KIB
    bulk_payload_limit: int = 16 * MIB
    checkpoint_log_bytes: int = 96 * MIB
    checkpoint_burst_log_bytes: int = 256 * MIB
    checkpoint_burst_epochs: int = 100_000
    checkpoint_interval_s: float = 90.0
    checkpoint_idle_s: float = 45.0
    checkpoint_min_interval_s: float = 2.0
    wal_fill_bytes: int = 256 * KIB
    wal_fill_limit_bytes: int = 8 * MIB
    wal_segment_bytes: int = 64 * MIB
    wal_rotate_bytes: int = 64 * MIB
    wal_rotate_age_s: float = 3600.0
    gc_on_checkpoint: bool = True
    gc_on_rotate: bool = True
    gc_keep_logs: int = 0
    gc_min_age_s: float = 0.0
    gc_lag_checkpoints: int | None = None
    log_limit_bytes: int = GIB
    backpressure_timeout_s: float = 30.0
    epoch_stride: int = 1 << 20
    checkpoints_kept: int = 2
    shard_rows: int = 1 << 30
    reserve_bytes: int = 4 * MIB

    def __post_init__(self) -> None:
        if self.durability not in DURABILITY_MODES:
            raise ValueError(f"durability must be {_listed(DURABILITY_MODES)}, not {self.durability!r}")
        check_whole(self, "sync_interval_ms", 1, 3_600_000)
        check_number(self, "group_window_ms", 0.0, 60_000.0)
        check_whole(self, "window_bytes", MIB, MAX_WINDOW_BYTES, multiple=MIB)
        check_whole(self, "data_file_first_bytes", 4 * KIB, self.window_bytes, multiple=4 * KIB)
        if self.data_file_bytes is not None:
            check_whole(self, "data_file_bytes", 64 * KIB, self.window_bytes, multiple=4 * KIB)
        check_whole(self, "mapping_budget", 1, 65536)
        check_whole(self, "descriptor_budget", 1, 65536)
        check_number(self, "slow_reader_s", 0.0, 1e9)
        check_whole(self, "max_payload_in_wal", 0, GIB)
        check_whole(self, "bulk_payload_limit", 0, GIB)
        check_whole(self, "checkpoint_log_bytes", 64 * KIB, 1 << 40)
        check_whole(self, "checkpoint_burst_log_bytes", 64 * KIB, 1 << 40)
        check_whole(self, "checkpoint_burst_epochs", 1, 1 << 40)
        check_number(self, "checkpoint_interval_s", 0.001, LONGEST_S)
        check_number(self, "checkpoint_idle_s", 0.001, LONGEST_S)
        check_number(self, "checkpoint_min_interval_s", 0.0, LONGEST_S)
        check_whole(self, "wal_fill_bytes", 4 * KIB, GIB, multiple=4 * KIB)
        check_whole(self, "wal_fill_limit_bytes", self.wal_fill_bytes, GIB, multiple=4 * KIB)
        check_whole(self, "wal_segment_bytes", 4 * KIB, GIB, multiple=4 * KIB)
        check_whole(self, "wal_rotate_bytes", 4 * KIB, 1 << 40)
        check_number(self, "wal_rotate_age_s", 0.001, LONGEST_S)
        check_whole(self, "epoch_stride", 1, 1 << 40)
        check_whole(self, "checkpoints_kept", 1, 1000)
        check_whole(self, "shard_rows", 1, 1 << 30)
        self._check_garbage_collection()
        check_whole(self, "log_limit_bytes", 64 * KIB, 1 << 50)
        check_number(self, "backpressure_timeout_s", 0.0, LONGEST_S)
        check_whole(self, "reserve_bytes", 0, 1 << 50)

    @property
    def data_file_limit(self) -> int:
        """The size from which a data file isn't grown any more, in bytes."""
        return self.window_bytes if self.data_file_bytes is None else min(self.data_file_bytes, self.window_bytes)

    def _check_garbage_collection(self) -> None:
        for name in ("gc_on_checkpoint", "gc_on_rotate"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if not (self.gc_on_checkpoint or self.gc_on_rotate):
            raise ValueError("gc_on_checkpoint or gc_on_rotate must be True: nothing else deletes a log")
        check_whole(self, "gc_keep_logs", 0, 1_000_000)
        check_number(self, "gc_min_age_s", 0.0, LONGEST_S)
        if self.gc_lag_checkpoints is not None:
            check_whole(self, "gc_lag_checkpoints", 0, 1_000_000)
            if self.gc_lag_checkpoints < self.checkpoints_kept - 1:
                raise ValueError(
                    f"gc_lag_checkpoints must be at least {self.checkpoints_kept - 1}, not {self.gc_lag_checkpoints}: "
                    f"each of the {self.checkpoints_kept} checkpoints kept needs the logs that follow it"
                )

    def to_stored(self) -> dict[str, int]:
        """The fields that are fixed at creation, as they go into the manifest."""
        return {name: getattr(self, name) for name in self.STORED}

    def with_stored(self, stored: Mapping[str, Any]) -> StoreConfig:
        """This config with the stored fields of an existing index in the place of its own."""
        if set(stored) != set(self.STORED):
            raise ValueError(f"stored fields must be {_listed(self.STORED)}, not {_listed(stored)}")
        if all(type(stored[name]) is int and stored[name] == getattr(self, name) for name in self.STORED):
            return self
        return self.changed(**stored)

    def changed(self, **fields: Any) -> StoreConfig:
        """A copy with other values of some fields. Raises ValueError, TypeError."""
        twin = copy.copy(self)
        for name, value in fields.items():
            object.__setattr__(twin, name, value)
        twin.__post_init__()
        return twin


def check_whole(config: object, name: str, least: int, most: int, multiple: int = 1) -> None:
    """Requires a field to be a whole number in a range, and makes it an int. Raises TypeError, ValueError."""
    value = getattr(config, name)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    value = operator.index(value)
    if not least <= value <= most:
        raise ValueError(f"{name} must be in {least} .. {most}, not {value}")
    if value % multiple:
        raise ValueError(f"{name} must be a multiple of {multiple}, not {value}")
    object.__setattr__(config, name, value)


def check_number(config: object, name: str, least: float, most: float) -> None:
    """Requires a field to be a finite number in a range, and makes it a float. Raises TypeError, ValueError."""
    value = getattr(config, name)
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, not {value!r}")
    value = float(value)
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} must be in {least} .. {most}, not {value}")
    object.__setattr__(config, name, value)


def _listed(values: Any) -> str:
    return " or ".join(repr(value) for value in values) or "nothing"
