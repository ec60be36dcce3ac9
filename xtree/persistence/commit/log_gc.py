"""Log garbage: which closed logs may be deleted.

A log may go once its last epoch isn't above that of the oldest checkpoint kept: recovery from any checkpoint kept then
begins after it. While there are fewer checkpoints than are to be kept, the empty index counts as the oldest. The fields
gc_* of StoreConfig let logs stay longer than that, never shorter. A log leaves the manifest first, and the directory
once that manifest is durable (IndexFiles).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xtree.persistence.base.config import StoreConfig
from xtree.persistence.files.manifest import CheckpointEntry, LogEntry


def oldest_epoch(config: StoreConfig, checkpoints: Sequence[CheckpointEntry]) -> int:
    """The epoch from which recovery may have to begin."""
    if len(checkpoints) < config.checkpoints_kept:
        return 0
    return min(entry.epoch for entry in checkpoints)


class LogGarbage:
    """Knows how long each closed log has been closed and how many checkpoints cover it.

    Both begin anew at an open, which can only let logs stay longer. For the thread that collects.
    """

    def __init__(self, config: StoreConfig, checkpoints: Iterable[CheckpointEntry], logs: Iterable[LogEntry]) -> None:
        self._config = config
        self._seen_at: dict[int, float] = {}
        self._covered: dict[int, int] = {}
        for entry in checkpoints:
            self.count_checkpoint(entry, logs)

    def count_checkpoint(self, checkpoint: CheckpointEntry, logs: Iterable[LogEntry]) -> None:
        """Notes that there is one more checkpoint."""
        for log in logs:
            if log.closed is not None and log.closed.last_epoch <= checkpoint.epoch:
                self._covered[log.number] = self._covered.get(log.number, 0) + 1

    def going(
        self, checkpoints: Sequence[CheckpointEntry], logs: Sequence[LogEntry], now: float, hold_back: bool = True
    ) -> frozenset[int]:
        """The numbers of the logs that may go at the time `now`: without `hold_back`, all that nothing needs."""
        config = self._config
        closed = [log for log in logs if log.closed is not None]
        for log in closed:
            self._seen_at.setdefault(log.number, now)
        oldest = oldest_epoch(config, checkpoints)
        covered = [log.number for log in closed if log.closed is not None and log.closed.last_epoch <= oldest]
        if not hold_back:
            return frozenset(covered)
        kept = {log.number for log in closed[max(0, len(closed) - config.gc_keep_logs) :]}
        lag = config.gc_lag_checkpoints
        return frozenset(
            number
            for number in covered
            if number not in kept
            and now - self._seen_at[number] >= config.gc_min_age_s
            and (lag is None or self._covered.get(number, 0) > lag)
        )

    def forget(self, numbers: Iterable[int]) -> None:
        """Drops what is known of logs that have gone."""
        for number in numbers:
            self._seen_at.pop(number, None)
            self._covered.pop(number, None)
