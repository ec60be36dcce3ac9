"""Figures of a benchmark: medians with their spread, side by side with what they are compared with."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import xtree

__all__ = ["Figure", "Report", "Target", "WrongAnswerError", "machine", "require"]

Say = Callable[[str], None]


class WrongAnswerError(AssertionError):
    """Raised when what was measured did something other than it should; its figures mean nothing then."""


def require(holds: bool, what: str) -> None:
    """Raises WrongAnswerError unless it holds."""
    if not holds:
        raise WrongAnswerError(f"the benchmark checked its own result: {what}")


@dataclass(frozen=True)
class Target:
    """The most that a ratio, or a figure itself, should be, and whether that is met."""

    at_most: float
    met: bool

    def __str__(self) -> str:
        limit = f"{self.at_most:.3g}" if self.at_most >= 1 else f"1/{1 / self.at_most:.3g}"
        return f"(≤ {limit}: {'met' if self.met else 'MISSED'})"


@dataclass
class Figure:
    """One measured quantity.

    ratios: its median divided by that of each figure that it is compared with, by name. targets: those of ratios, by
    the same names; that of the figure itself under "".
    """

    section: str
    name: str
    unit: str
    samples: list[float]
    ratios: dict[str, float] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    note: str = ""

    def missed(self) -> list[str]:
        """A line for each target that isn't met."""
        values = {other: f"{ratio:.3g} × {other}" for other, ratio in self.ratios.items()}
        values[""] = f"{_digits(self.median)} {self.unit}"
        return [
            f"{self.section}: {self.name}: {values[other]} {target}"
            for other, target in self.targets.items()
            if not target.met
        ]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: the samples, their median and their range."""
        return {**asdict(self), "median": self.median, "least": min(self.samples), "most": max(self.samples)}


class Report:
    """The figures of a run, in the order in which they were measured. judging: whether targets count."""

    def __init__(self, say: Say, judging: bool = True) -> None:
        self.judging = judging
        self.figures: list[Figure] = []
        self.skipped: dict[str, str] = {}
        self._say = say

    def section(self, title: str) -> None:
        """Begins a table."""
        self._say(f"\n{title}")

    def add(
        self,
        section: str,
        name: str,
        unit: str,
        samples: Sequence[float],
        against: Iterable[Figure | None] = (),
        note: str = "",
        targets: Mapping[str, float] | None = None,
    ) -> Figure:
        """Adds a figure and prints its line. A figure in `against` that is None, because it was skipped, is left out.

        A ratio is the median of the ratios of samples taken in the same rounds, when there are as many of both.
        targets: the most that it should be, by the name of the figure compared with, "" for the median itself.
        """
        figure = Figure(section, name, unit, [float(sample) for sample in samples], note=note)
        for other in against:
            if other is not None and other.median:
                figure.ratios[other.name] = _ratio(figure, other)
        for other_name, limit in (targets or {}).items() if self.judging else ():
            value = figure.ratios.get(other_name) if other_name else figure.median
            if value is not None:
                figure.targets[other_name] = Target(limit, value <= limit)
        self.figures.append(figure)
        self._say(_line(figure))
        return figure

    def skip(self, name: str, reason: str) -> None:
        """Notes what couldn't be measured, and why."""
        self.skipped[name] = reason
        self._say(f"  {name:<46} skipped: {reason}")

    def as_dict(self, **more: Any) -> dict[str, Any]:
        """The whole run, as JSON holds it."""
        return {
            "xtree": xtree.__version__,
            "machine": machine(),
            **more,
            "figures": [figure.as_dict() for figure in self.figures],
            "skipped": self.skipped,
        }


def _line(figure: Figure) -> str:
    """A figure as people read it: name, median, unit, range, ratios with their targets, note."""
    ratios = (
        " ".join(filter(None, (f"{ratio:.3g} × {other}", str(figure.targets.get(other, "")))))
        for other, ratio in figure.ratios.items()
    )
    few = len(figure.samples) == 1
    spread = "" if few else f"{_digits(min(figure.samples))} … {_digits(max(figure.samples))}"
    line = f"  {figure.name:<46} {_digits(figure.median):>11} {figure.unit:<10} {spread:<22}"
    return "  ".join(filter(None, (line, str(figure.targets.get("", "")), ", ".join(ratios), figure.note))).rstrip()


def _ratio(figure: Figure, other: Figure) -> float:
    if len(figure.samples) == len(other.samples) and all(other.samples):
        return statistics.median(mine / its for mine, its in zip(figure.samples, other.samples))
    return figure.median / other.median


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
    }


def _digits(value: float) -> str:
    """A number as people compare it: three digits, thousands apart."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
