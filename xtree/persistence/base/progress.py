"""Progress: how a long operation tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[int, int], object]  # called with (done, total); what it raises ends the work
