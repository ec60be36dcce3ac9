"""Answers of indexes in one form, and judges that compare them with a look at every record.

A sample of the questions is always judged like this. The answers to all others are compared between the contestants;
when two differ, a look at every record says who is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

__all__ = ["Answer", "Judge", "NearestJudge", "WindowJudge", "counted", "from_lists", "from_pairs"]

SAMPLE = 20  # questions that are always looked at
DIFFERING = 3  # of the questions that two contestants answered differently, those that are looked at
FLOAT32 = 2.0**-22  # the most that rounding to float32 moves a coordinate, relative to the largest


class Answer(NamedTuple):
    """Question i has the records ids[offsets[i]:offsets[i + 1]]; no ids where they were only counted."""

    offsets: np.ndarray
    ids: np.ndarray | None
    loose: bool = False  # from boxes rounded to float32, outwards
    records: int | None = None  # in the whole index, where it was asked for them

    def of(self, question: int) -> np.ndarray:
        assert self.ids is not None
        return self.ids[self.offsets[question] : self.offsets[question + 1]]


def from_lists(found: Sequence[Sequence[int] | np.ndarray], loose: bool = False) -> Answer:
    """An Answer from an array or a list for each question."""
    ids = np.concatenate([np.asarray(hits, np.int64) for hits in found]) if found else np.zeros(0, np.int64)
    return Answer(_offsets([len(hits) for hits in found]), ids, loose)


def from_pairs(questions: np.ndarray, ids: np.ndarray, count: int, loose: bool = False) -> Answer:
    """An Answer to `count` questions from pairs (question, id) in any order."""
    order = np.argsort(questions, kind="stable")
    return Answer(_offsets(np.bincount(questions, minlength=count)), np.asarray(ids, np.int64)[order], loose)


def counted(counts: Sequence[int] | np.ndarray, loose: bool = False) -> Answer:
    """An Answer from the number of records for each question."""
    return Answer(_offsets(counts), None, loose)


def _offsets(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


class Judge(Protocol):
    """Knows the right answers to a number of questions."""

    def wrong(self, answers: Mapping[str, Answer]) -> dict[str, str]:
        """What is wrong with each answer, by name; right answers are left out."""


class WindowJudge:
    """Judges which records touch windows (m, 4). ids (n,): of the boxes (n, 4), 0 .. n-1 when not given."""

    def __init__(self, boxes: np.ndarray, windows: np.ndarray, ids: np.ndarray | None = None) -> None:
        self._boxes = boxes
        self._windows = windows
        self._ids = ids
        self._seen: dict[tuple[int, bool], np.ndarray] = {}

    def wrong(self, answers: Mapping[str, Answer]) -> dict[str, str]:
        questions = _questions(len(self._windows), [_digest(a) for a in answers.values() if not a.loose])
        found = {name: self._fault(answer, questions) for name, answer in answers.items()}
        return {name: fault for name, fault in found.items() if fault}

    def _fault(self, answer: Answer, questions: Sequence[int]) -> str:
        if answer.records not in (None, len(self._boxes)):
            return f"{answer.records} records in the index, expected {len(self._boxes)}"
        if len(answer.offsets) != len(self._windows) + 1:
            return f"{len(answer.offsets) - 1} answers to {len(self._windows)} windows"
        for question in questions:
            right = self._hits(question)
            most = self._hits(question, loose=True) if answer.loose else right
            count = int(answer.offsets[question + 1] - answer.offsets[question])
            if not len(right) <= count <= len(most):
                return f"{count} records touch window {question}, expected {len(right)}"
            if answer.ids is None:
                continue
            found = np.sort(answer.of(question))
            if np.setdiff1d(right, found).size or np.setdiff1d(found, most).size or np.any(np.diff(found) == 0):
                return f"other records touch window {question} than those it found"
        return ""

    def _hits(self, question: int, loose: bool = False) -> np.ndarray:
        """The sorted ids of the records that touch a window, or might if their boxes were rounded."""
        if (question, loose) not in self._seen:
            x0, y0, x1, y1 = self._windows[question].tolist()
            more = FLOAT32 * float(np.abs(self._boxes).max(initial=0)) if loose else 0.0
            low_x, low_y, high_x, high_y = self._boxes.T
            touching = (low_x <= x1 + more) & (high_x >= x0 - more) & (low_y <= y1 + more) & (high_y >= y0 - more)
            rows = np.flatnonzero(touching)
            self._seen[question, loose] = rows if self._ids is None else np.sort(self._ids[rows])
        return self._seen[question, loose]


class NearestJudge:
    """Judges which k records are nearest to points (m, 2), by their distances: of equal ones any will do."""

    def __init__(self, boxes: np.ndarray, points: np.ndarray, k: int) -> None:
        self._boxes = boxes
        self._points = points
        self._k = min(k, len(boxes))

    def wrong(self, answers: Mapping[str, Answer]) -> dict[str, str]:
        found: dict[str, np.ndarray] = {}
        faults: dict[str, str] = {}
        for name, answer in answers.items():
            counts = np.diff(answer.offsets)
            if len(counts) != len(self._points) or counts.min(initial=self._k) < self._k:
                faults[name] = f"fewer than {self._k} records for a point"
            else:
                found[name] = self._distances(answer)
        for question in _questions(len(self._points), list(found.values())):
            right = np.sort(_gaps(self._boxes, self._points[question]))[: self._k]
            for name, distances in found.items():
                if not np.allclose(distances[question], right, rtol=1e-12, atol=1e-15):
                    faults[name] = f"others are nearer to point {question} than those it found"
        return faults

    def _distances(self, answer: Answer) -> np.ndarray:
        """The k least distances of what was found for each point, (m, k), each record counted once."""
        assert answer.ids is not None
        rows = np.full((len(self._points), self._k), np.inf)
        for question, point in enumerate(self._points):
            away = np.sort(_gaps(self._boxes[np.unique(answer.of(question))], point))[: self._k]
            rows[question, : len(away)] = away
        return rows


def _gaps(boxes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Distances (n,) of a point from boxes (n, 4)."""
    gaps = np.maximum(np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]), 0)
    return np.hypot(gaps[:, 0], gaps[:, 1])


def _digest(answer: Answer) -> np.ndarray:
    """Numbers for each question that are the same for the same records in any order: (m, 1) or (m, 2) int64."""
    counts = np.diff(answer.offsets)
    if answer.ids is None:
        return counts[:, None]
    sums = np.concatenate([[0], np.cumsum(answer.ids * answer.ids + answer.ids)])
    return np.column_stack([counts, np.diff(sums[answer.offsets])])


def _questions(count: int, digests: Sequence[np.ndarray]) -> list[int]:
    """The questions to look at: a sample, and some of those that two contestants answered differently."""
    chosen = set(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int).tolist())
    for digest in digests[1:]:
        if digest.shape == digests[0].shape:
            differing = np.any(digest != digests[0], axis=1)
            chosen.update(np.flatnonzero(differing)[:DIFFERING].tolist())
    return sorted(chosen)
