"""What fsck says: findings, each with its place, what was expected there and what was found, and figures."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DAMAGE", "NOTE", "ORPHAN", "Action", "Finding", "Report", "expected_and_found"]

DAMAGE = "damage"  # something is not what was written, or contradicts something else
ORPHAN = "orphan"  # a leftover that nothing refers to and that holds no commit
NOTE = "note"  # nothing wrong, and worth knowing: a torn tail, a copy that a crash may have cut off

_SENTENCES = (
    re.compile(r"(?:level \d+: (?P<what>[^:]+): )?expected (?P<expected>.+?), found (?P<found>.+)"),
    re.compile(r"(?P<what>)(?:page of node \w+ )?has (?P<found>.+?)[;,] (?:expected|its row says) (?P<expected>.+)"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    part: superblock, manifest, directory, checkpoint, log, data file, row, slot, page, tree or recovery. file: the bare
    name, None for what isn't in a single file. offset: in the file. node: the NodeID. tree: its name.
    """

    severity: str
    part: str
    expected: str
    found: str
    file: str | None = None
    offset: int | None = None
    node: int | None = None
    tree: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The finding for JSON."""
        return {**dataclasses.asdict(self), "message": str(self)}

    def __str__(self) -> str:
        places = [
            self.file,
            None if self.offset is None else f"offset {self.offset}",
            None if self.tree is None else f"tree {self.tree!r}",
            None if self.node is None else f"node {self.node:#x}",
        ]
        where = ", ".join(place for place in places if place is not None) or self.part
        return f"{where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Action:
    """One step of a repair. kind: recover, superblock, manifest, checkpoint or remove; file: the bare name."""

    kind: str
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass
class Report:
    """What fsck found. `opens`: whether the index can be opened as it is; `error` says why not.

    scope: "directory" for all files of an index that nobody writes to, "snapshot" for one epoch of an open one.
    """

    path: str
    scope: str
    findings: list[Finding] = field(default_factory=list)
    opens: bool = True
    error: str | None = None
    epoch: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    trees: dict[str, dict[str, Any]] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    repaired: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there is no damage."""
        return self.opens and not self.of(DAMAGE)

    def of(self, severity: str) -> list[Finding]:
        """The findings of a severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def add(self, severity: str, part: str, expected: str, found: str, **place: Any) -> None:
        """Notes a finding."""
        self.findings.append(Finding(severity, part, expected, found, **place))

    def add_error(self, severity: str, part: str, error: BaseException, expected: str, **place: Any) -> None:
        """Notes what an error of the library says; `expected` is for errors that don't say it themselves."""
        wanted, found = expected_and_found(error, expected)
        if place.get("offset") is None and (match := re.search(r"at offset (\d+)", str(error))):
            place["offset"] = int(match.group(1))
        self.add(severity, part, wanted, found, **place)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        counts = Counter(finding.severity for finding in self.findings)
        return {
            "path": self.path,
            "scope": self.scope,
            "ok": self.ok,
            "opens": self.opens,
            "error": self.error,
            "epoch": self.epoch,
            "counts": {severity: counts[severity] for severity in (DAMAGE, ORPHAN, NOTE)},
            "findings": [finding.as_dict() for finding in self.findings],
            "figures": self.figures,
            "trees": self.trees,
            "actions": [dataclasses.asdict(action) for action in self.actions],
            "repaired": self.repaired,
            "seconds": self.seconds,
        }


def expected_and_found(error: BaseException, expected: str) -> tuple[str, str]:
    """The two halves of what an error says; where it has no halves, `expected` and all that it says."""
    if isinstance(error, OSError):
        return expected, error.strerror or str(error)
    text = " ".join(str(error).split())
    for sentence in _SENTENCES:
        if match := sentence.search(text):
            return f"{match['what']} {match['expected']}" if match["what"] else match["expected"], match["found"]
    return expected, re.sub(rf"\S*{re.escape(os.sep)}\S*: (at offset \d+: )?", "", text, count=1)
