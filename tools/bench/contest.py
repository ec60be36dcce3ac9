"""Contests: indexes take turns at the same task, and get figures for it if their answers were right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from xtree.tools.bench.answers import Answer, Judge
from xtree.tools.bench.report import Report, WrongAnswerError
from xtree.tools.bench.trees import Contestant, Trial

__all__ = ["JudgeOf", "Row", "TrialOf", "asking", "hold", "table", "take_turns"]

JudgeOf = Callable[[int], Judge]
TrialOf = Callable[[Contestant, int], "Trial | None"]
UNITS = {"s": 1.0, "ms": 1e3, "µs": 1e6}


@dataclass(frozen=True)
class Row:
    """A task, and how it is reported.

    per: how often it is done in one trial. targets: the most that the ratio to a peer should be, by name. basis: those
    of ours that our others are compared with, like peers. without_targets: those of ours that have no targets.
    """

    section: str
    title: str
    unit: str
    per: int = 1
    targets: Mapping[str, float] = field(default_factory=dict)
    basis: tuple[str, ...] = ()
    without_targets: tuple[str, ...] = ()


def hold(
    report: Report,
    row: Row,
    rounds: int,
    contestants: Sequence[Contestant],
    trial_of: TrialOf,
    judge: Judge | JudgeOf,
) -> None:
    """Has all contestants that can do the task take turns, and reports them.

    judge: one for all rounds, or a function that gives that of each round.
    """
    judges = judge if callable(judge) else lambda _: judge
    table(report, row, contestants, take_turns(report, row, rounds, contestants, trial_of, judges))


def take_turns(
    report: Report,
    row: Row,
    rounds: int,
    contestants: Sequence[Contestant],
    trial_of: TrialOf,
    judge_of: JudgeOf,
) -> dict[str, list[float]]:
    """The samples of each contestant, by name; none of one whose answer was wrong in any round.

    trial_of(contestant, round): what it does in that round, None if it can't. judge_of(round): the judge of that round.
    Each round begins with another contestant. Slow contestants take part in the first round only. A peer that is wrong
    is skipped with the reason; when one of ours is wrong, WrongAnswerError is raised.
    """
    report.section(row.title)
    samples: dict[str, list[float]] = {}
    wrong: dict[str, str] = {}
    for round_ in range(rounds):
        answers: dict[str, Answer] = {}
        first = round_ % len(contestants)  # the first finds the caches cold
        for contestant in (*contestants[first:], *contestants[:first]):
            trial = None if contestant.slow and round_ else trial_of(contestant, round_)
            if trial is None:
                continue
            started = perf_counter()
            raw = trial.run()
            seconds = perf_counter() - started
            samples.setdefault(contestant.name, []).append(seconds * UNITS[row.unit] / row.per)
            answer = trial.answer(raw)
            del raw, trial  # neither takes room while the next one prepares
            if answer is not None:
                answers[contestant.name] = answer
        wrong = judge_of(round_).wrong(answers) | wrong
    for contestant in contestants:
        if contestant.name in wrong:
            reason = f"wrong: {wrong[contestant.name]}"
            if contestant.ours:
                raise WrongAnswerError(f"{row.title}: {contestant.name}: {reason}")
            report.skip(f"{contestant.name}: {row.section}", reason)
            samples.pop(contestant.name, None)
    return samples


def table(
    report: Report, row: Row, contestants: Sequence[Contestant], samples: Mapping[str, Sequence[float]]
) -> None:
    """Reports samples, ours last and compared with those of all others."""
    ours = {contestant.name for contestant in contestants if contestant.ours} - set(row.basis)
    peers = [report.add(row.section, name, row.unit, taken) for name, taken in samples.items() if name not in ours]
    for name, taken in samples.items():
        if name in ours:
            targets = {} if name in row.without_targets else row.targets
            report.add(row.section, name, row.unit, taken, against=peers, targets=targets)


def asking(contestant: Contestant, trial: Trial | None, windows: np.ndarray) -> Trial | None:
    """A trial whose answer is what windows find afterwards, and how many records there are."""
    if trial is None:
        return None

    def answer(raw: object) -> Answer | None:
        trial.answer(raw)
        asked = contestant.search(windows)
        found = None if asked is None else asked.found()
        return None if found is None else found._replace(records=contestant.records())

    return Trial(trial.run, answer)
