"""The clock: time as the coordinator measures it. A test may replace it by one that it moves by hand."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any


class Clock:
    """The system's monotonic clock."""

    def now(self) -> float:
        """The time in seconds, which never goes back."""
        return time.monotonic()

    def get(self, items: queue.SimpleQueue[Any], timeout: float | None) -> Any:
        """The next item of a queue, None when `timeout` seconds pass first. Without a timeout it waits for ever."""
        try:
            return items.get(timeout=timeout)
        except queue.Empty:
            return None

    def wait(self, condition: threading.Condition, timeout: float) -> bool:
        """Waits for a condition, which the caller holds, at most `timeout` seconds. False when they have passed."""
        return condition.wait(timeout)
