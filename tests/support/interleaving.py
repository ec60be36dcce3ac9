"""Explores every interleaving of a few small programs: states, their atomic steps, and what must never happen.

A state is a namespace of hashable values. A program is a dict of steps by label (`in_order` makes one of a list); a
step changes the copy of a state that it is given, and returns the next label, END, or None if it can't run now.
A tuple of steps is a choice: each is tried. A step that finds something wrong raises Flaw. The search is breadth
first, so it reports a shortest history.

Memory: a store that isn't sequentially consistent stays in its thread's buffer, first in, first out, until it is
flushed at any later moment; the thread itself sees it at once. That is what x86 processors do. It includes what the
protocols have to fear: a load that passes an earlier store of its own thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace as State
from typing import Any

END = "end"

Step = Callable[[State], "str | None"]
Program = Mapping[str, "Step | tuple[Step, ...]"]


class Flaw(Exception):
    """Something that must never happen."""


@dataclass
class Explored:
    """What a search has found: a flaw and a shortest history that leads to it, or that no state has one."""

    states: int
    steps: int
    ended: bool = False  # there is a state in which all programs have ended
    flaw: str | None = None
    history: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([f"{self.flaw} ({self.states} states, {self.steps} steps)", *self.history])


def put(values: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    """A tuple with one element replaced."""
    return (*values[:i], value, *values[i + 1 :])


def in_order(steps: Sequence[tuple[str, Any]]) -> dict[str, Step | tuple[Step, ...]]:
    """A program of steps that follow each other. A step that returns a label jumps; on False it has to wait."""
    following = [label for label, _ in steps[1:]] + [END]

    def run(step: Callable[[State], str | bool | None], after: str, s: State) -> str | None:
        result = step(s)
        if result is False:
            return None
        return result if isinstance(result, str) else after

    def wrap(step: Any, after: str) -> Step | tuple[Step, ...]:
        if isinstance(step, tuple):
            return tuple(partial(run, one, after) for one in step)
        return partial(run, step, after)

    return {label: wrap(step, after) for (label, step), after in zip(steps, following)}


def load(s: State, me: int, name: str, i: int = -1) -> Any:
    """What thread `me` sees of a shared value, or of the i-th element of one."""
    for stored, at, value in reversed(s.buffers[me]):
        if (stored, at) == (name, i):
            return value
    return getattr(s, name) if i < 0 else getattr(s, name)[i]


def store(s: State, me: int, name: str, value: Any, i: int = -1, fence: bool = True) -> None:
    """A store of thread `me`, followed by a fence, so that everybody sees it and all stores before it."""
    s.buffers = put(s.buffers, me, (*s.buffers[me], (name, i, value)))
    while fence and s.buffers[me]:
        flush(s, me)


def flush(s: State, me: int) -> None:
    """Shows everybody the oldest store that a thread still has in its buffer."""
    (name, i, value), *rest = s.buffers[me]
    s.buffers = put(s.buffers, me, tuple(rest))
    setattr(s, name, value if i < 0 else put(getattr(s, name), i, value))


def explore(initial: State, programs: Mapping[str, Program], most: int = 3_000_000) -> Explored:
    """Runs the programs, each from its first label, in every order. More than `most` states are an error.

    A state in which nothing can go on although a program hasn't ended is a flaw: a deadlock or a lost wake-up. Programs
    with names in capitals are services, which needn't end. A step may move other programs too, by `s.at`.
    """
    names = list(programs)
    awaited = [i for i, name in enumerate(names) if not name.isupper()]
    initial.at = tuple(next(iter(programs[name])) for name in names)
    initial.buffers = ((),) * len(names)
    fields = list(vars(initial))
    first = tuple(vars(initial).values())
    before: dict[tuple[Any, ...], tuple[tuple[Any, ...], str] | None] = {first: None}
    following = deque([first])
    steps, ended = 0, False
    while following:
        key = following.popleft()
        now = State(**dict(zip(fields, key, strict=True)))
        stuck = True
        for me, what, step in _moves(now, names, programs):
            s = State(**vars(now))
            try:
                label = step(s)
            except Flaw as flaw:
                return Explored(len(before), steps, False, str(flaw), (*_history(before, key), what))
            if label is None:
                continue
            steps += 1
            stuck = False
            s.at = put(s.at, me, label)
            reached = tuple(vars(s).values())
            if reached not in before:
                before[reached] = (key, what)
                following.append(reached)
        if all(now.at[i] == END for i in awaited):
            ended = True
        elif stuck:
            return Explored(len(before), steps, False, "nobody can go on", _history(before, key))
        if len(before) > most:
            raise RuntimeError(f"more than {most} states")
    return Explored(len(before), steps, ended)


def _moves(s: State, names: list[str], programs: Mapping[str, Program]) -> Iterator[tuple[int, str, Step]]:
    """Every step that may come next: the number of its program, its name for the history, and the step."""
    for i, name in enumerate(names):
        if s.at[i] != END:
            found = programs[name][s.at[i]]
            for step in found if isinstance(found, tuple) else (found,):
                yield i, f"{name}: {s.at[i]}", step
        if s.buffers[i]:
            yield i, f"{name}: its oldest store is seen", partial(_flush_one, i)


def _flush_one(me: int, s: State) -> str:
    flush(s, me)
    label: str = s.at[me]
    return label


def _history(before: Mapping[Any, tuple[Any, str] | None], key: Any) -> tuple[str, ...]:
    """The steps that lead to a state."""
    steps = []
    while (last := before[key]) is not None:
        key, what = last
        steps.append(what)
    return tuple(reversed(steps))
