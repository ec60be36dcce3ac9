"""When a checkpoint is due, as long as nobody asks for one.

Three situations, each with its own measure (StoreConfig has the figures):

- burst, while the log grows fast: after much log, or many commits, since every checkpoint then writes much again;
- steady: after less log, or some time after the first commit that the last checkpoint doesn't hold;
- idle: a while after the last commit, so that an index which is only read needs no replay.

The log grows fast when, at its pace since that first commit, it would reach the burst's size before the time of the
steady case is over. So a burst that has ended becomes a steady case by itself as time goes on.

Checkpoints are at least a minimum interval apart, except where one is demanded; after a failure there is a pause, which
doubles each time. The policy only judges and has no side effects.
"""

from __future__ import annotations

import math

from xtree.persistence.base.clock import Clock
from xtree.persistence.base.config import StoreConfig

FIRST_PAUSE_S = 1.0  # after a failure
LONGEST_PAUSE_S = 60.0


class Pause:
    """The time until something that failed is tried again: each failure in a row doubles it."""

    def __init__(self) -> None:
        self.until = -math.inf
        self._failures = 0

    def failed(self, now: float) -> None:
        """Begins a pause, longer than the one before."""
        self.until = now + min(FIRST_PAUSE_S * 2.0**self._failures, LONGEST_PAUSE_S)
        self._failures = min(self._failures + 1, 30)

    def shorten(self, now: float) -> None:
        """Shortens the pause to that of a first failure, counted from now."""
        self.until = min(self.until, now + FIRST_PAUSE_S)

    def succeeded(self) -> None:
        """Ends the pauses."""
        self.until = -math.inf
        self._failures = 0


class CheckpointPolicy:
    """Judges by the clock, by commits and by the size of the log that no checkpoint holds.

    `committed` and `began` are called by the holder of the coordinator's turn, `demand` by a thread that waits
    for room, the others by the checkpointer and, to see whether to wake it, by the holder of the turn.
    """

    def __init__(self, config: StoreConfig, clock: Clock) -> None:
        self._clock = clock
        self._steady_bytes = config.checkpoint_log_bytes
        self._burst_bytes = max(config.checkpoint_burst_log_bytes, config.checkpoint_log_bytes)
        self._burst_epochs = config.checkpoint_burst_epochs
        self._interval = config.checkpoint_interval_s
        self._idle = config.checkpoint_idle_s
        self._least_interval = config.checkpoint_min_interval_s
        self._epochs = 0  # committed
        self._covered = 0  # of these, how many the last checkpoint holds
        self._covering = 0  # and how many the one under way will hold
        self._changed_at: float | None = None  # first commit in no checkpoint, not even in the one under way
        self._changed_before: float | None = None  # the same before the checkpoint under way began
        self._last_at = 0.0  # last commit
        self._ended_at = -math.inf
        self._pause = Pause()
        self._demanded = False

    @property
    def epochs(self) -> int:
        """Commits that no checkpoint holds."""
        return self._epochs - self._covered

    def committed(self, epochs: int) -> None:
        """Notes commits."""
        self._last_at = self._clock.now()
        if self._changed_at is None:
            self._changed_at = self._last_at
        self._epochs += epochs

    def demand(self) -> None:
        """Asks for a checkpoint: without a minimum interval, and with no more than a short pause after a failure."""
        self._demanded = True
        self._pause.shorten(self._clock.now())

    def began(self) -> None:
        """Notes that a checkpoint begins, which will hold all commits so far."""
        self._covering = self._epochs
        self._changed_before, self._changed_at = self._changed_at, None

    def succeeded(self) -> None:
        """Notes that the checkpoint is on the disk."""
        self._ended_at = self._clock.now()
        self._covered = self._covering
        self._changed_before = None
        self._demanded = False
        self._pause.succeeded()

    def failed(self) -> None:
        """Notes that the checkpoint failed, or that none could begin."""
        if self._changed_before is not None:
            self._changed_at = self._changed_before
        self._changed_before = None
        self._pause.failed(self._clock.now())

    def large(self, log_bytes: int) -> bool:
        """Whether `due` may say something new though no time has passed: a cheap test, for after each commit."""
        return log_bytes >= self._steady_bytes or self.epochs >= self._burst_epochs

    def due(self, log_bytes: int) -> str | None:
        """Why a checkpoint is due: "demand", "burst", "steady" or "idle"; None when it isn't."""
        now = self._clock.now()
        if now < self._pause.until:
            return None
        if self._demanded:
            return "demand"
        if self._changed_at is None or now < self._ended_at + self._least_interval:
            return None
        if log_bytes >= self._burst_bytes or self.epochs >= self._burst_epochs:
            return "burst"
        if log_bytes >= self._steady_bytes and now >= self._burst_end(log_bytes):
            return "steady"
        if now >= self._changed_at + self._interval:
            return "steady"
        if now >= self._last_at + self._idle:
            return "idle"
        return None

    def next_look(self, log_bytes: int) -> float | None:
        """The moment at which `due` will have something to say if nothing happens until then; None: never."""
        if self._demanded:
            return self._pause.until
        if self._changed_at is None:
            return None
        moment = min(self._changed_at + self._interval, self._last_at + self._idle)
        if log_bytes >= self._burst_bytes or self.epochs >= self._burst_epochs:
            moment = -math.inf
        elif log_bytes >= self._steady_bytes:
            moment = min(moment, self._burst_end(log_bytes))
        return max(moment, self._ended_at + self._least_interval, self._pause.until)

    def _burst_end(self, log_bytes: int) -> float:
        """When the pace of the log will be that of a steady case, if the log doesn't grow any more."""
        assert self._changed_at is not None
        return self._changed_at + self._interval * log_bytes / self._burst_bytes
