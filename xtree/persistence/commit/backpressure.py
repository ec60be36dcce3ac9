"""Backpressure: writers wait before they begin while the log is too far ahead of the checkpoints.

Below four fifths of the limit nothing happens. From there on each writer pauses for a moment, which is longer the
nearer the limit is; at the limit it waits until a checkpoint has made room, or its time is up. A thread that waits here
holds no lock but those of other transactions that it is in, which no checkpoint needs; the leader, which a checkpoint
does need, never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from xtree.persistence.base.clock import Clock
from xtree.persistence.base.config import StoreConfig
from xtree.persistence.base.lock_ranks import ROOM, RankedLock

SLOW_SHARE = 0.8  # of the limit
LONGEST_PAUSE_S = 0.02


class Backpressure:
    """Lets writers wait for room in the log. Any thread may call it."""

    def __init__(
        self, config: StoreConfig, clock: Clock, outstanding: Callable[[], int], demand_checkpoint: Callable[[], None]
    ) -> None:
        self.waits = 0
        self.wait_seconds = 0.0
        self.timeouts = 0
        self._limit = config.log_limit_bytes
        self.slow_from = int(config.log_limit_bytes * SLOW_SHARE)  # nobody waits below
        self._patience = config.backpressure_timeout_s
        self._clock = clock
        self._outstanding = outstanding
        self._demand_checkpoint = demand_checkpoint
        lock: Any = RankedLock(ROOM)  # has all that a Condition asks for
        self._changed = threading.Condition(lock)

    def wait_for_room(
        self,
        timeout: float | None,
        require_writable: Callable[[], None],
        last_error: Callable[[], BaseException | None],
    ) -> None:
        """Returns when less log than the limit is outstanding.

        Raises TimeoutError after `timeout` seconds (None: those of the config), caused by the last error of the
        checkpointer if there is one; and what `require_writable` raises when the store has closed or failed meanwhile.
        """
        outstanding = self._outstanding()
        if outstanding < self.slow_from:
            return
        self._demand_checkpoint()
        patience = self._patience if timeout is None else timeout
        began = self._clock.now()
        self.waits += 1
        try:
            if outstanding < self._limit:
                excess = (outstanding - self.slow_from) / (self._limit - self.slow_from)
                with self._changed:
                    self._clock.wait(self._changed, min(patience, LONGEST_PAUSE_S * excess))
                return
            if not self._wait(began + patience, require_writable):
                self.timeouts += 1
                raise TimeoutError(
                    f"no room in the log after {patience} s: {self._outstanding()} bytes of it are in no checkpoint, "
                    f"and log_limit_bytes is {self._limit}"
                ) from last_error()
        finally:
            waited = self._clock.now() - began
            self.wait_seconds += waited  # no call in between, in which another thread's wait could be lost

    def wake(self) -> None:
        """Lets those who wait look again: there may be room, or no point in waiting."""
        with self._changed:
            self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """Waits, the seconds they took, how many were given up, and the bytes of log that no checkpoint holds."""
        return {
            "room_waits": self.waits,
            "room_wait_seconds": self.wait_seconds,
            "room_timeouts": self.timeouts,
            "log_bytes_outstanding": self._outstanding(),
        }

    def _wait(self, deadline: float, require_writable: Callable[[], None]) -> bool:
        with self._changed:
            while self._outstanding() >= self._limit:
                require_writable()
                left = deadline - self._clock.now()
                if left <= 0:
                    return False
                self._clock.wait(self._changed, left)
        return True
