"""The clock: time as the coordinator measures it. A test may replace it by one that it moves by hand."""

from __future__ import annotations

import threading
import time

from xtree.persistence.base.bell import Bell


class Clock:
    """The system's monotonic clock."""

    def now(self) -> float:
        """The time in seconds, which never goes back."""
        return time.monotonic()

    def get(self, bell: Bell, timeout: float | None) -> bool:
        """Sleeps until a bell is rung; False when `timeout` seconds pass first. Without a timeout it waits for ever."""
        return bell.get(timeout)

    def wait(self, condition: threading.Condition, timeout: float) -> bool:
        """Waits for a condition, which the caller holds, at most `timeout` seconds. False when they have passed."""
        return condition.wait(timeout)
