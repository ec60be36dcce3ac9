"""Display: a tree in one line; trees, snapshots and runtimes as small HTML tables."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

__all__ = ["as_html", "as_line"]

IN_LINE = ("dims", "records", "height", "name", "path", "mode", "closed")


def as_line(summary: dict[str, Any]) -> str:
    """XTree(dims=2, records=3, height=1, ...), with those of its keys that the summary holds."""
    return "XTree(" + ", ".join(f"{key}={summary[key]!r}" for key in IN_LINE if key in summary) + ")"


def as_html(summary: dict[str, Any], caption: str = "XTree") -> str:
    """The summary as a table, for notebooks."""
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(_text(value))}</td></tr>" for key, value in summary.items())
    return f"<table><caption>{escape(caption)}</caption>{rows}</table>"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, np.ndarray):
        return ", ".join(f"{number:g}" for number in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
