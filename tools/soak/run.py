"""Soak: an index at work for as long as you like, killed and reopened, in changing durability modes.

    python -m xtree.tools.soak --minutes 60 --dir DIRECTORY

A round works for a while, in this process or in a child that is killed, opens what is left, and verifies it: check() is
clean, every tree is what the model says, no acknowledged commit is missing. Then everything is closed, and what is
left over is measured. The number of live records stays about the same, so whatever grows from round to round is a leak.
Prints a line a round and a verdict; exit status 0 fine, 1 something was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import numpy as np

import xtree
from xtree.persistence.files import filenames
from xtree.tools.bench.size import allocated_bytes
from xtree.tools.soak.model import SoakError
from xtree.tools.soak.work import CONFIG, WRITERS, Model, Work

__all__ = ["Plan", "run_soak"]

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's mallopt
MODES = ("balanced", "eventual", "strict")
MIB = 1 << 20
REST_S = 300.0  # the longest that the last round takes
STEADY_AFTER = 4  # rounds; earlier ones make threads, pools and files that stay
# What may grow from the first third of the rounds to the last: by a factor, and by bytes or pieces. Files are as long
# as the commits during the longest snapshot made them, so those of PER_COMMIT may grow with the commits in a round.
GROWTH_ALLOWED = {"resident": 1.1, "disk": 1.5, "data": 1.5, "descriptors": 1.0, "mappings": 1.2}
SLACK = {"resident": 8 * MIB, "disk": 64 * MIB, "data": 64 * MIB, "descriptors": 0, "mappings": 16}
PER_COMMIT = ("disk", "data")
SMALLEST_JUDGED = MIB  # live bytes; in a smaller index the files' headers and first sizes are most of it


@dataclass(frozen=True)
class Plan:
    """What to do. keep: batches that live in each history, about 100 records each.

    space_factor: the most bytes on the disk, of all files, for each byte of live pages after the last, calm round.
    """

    minutes: float = 60.0
    round_seconds: float = 30.0
    snapshot_seconds: float = 120.0
    keep: int = 200
    seed: int = 1
    space_factor: float = 2.0


@dataclass
class Round:
    """What one round did and what it left behind, after a clean close."""

    number: int
    mode: str
    killed: bool
    seconds: float = 0.0
    steps: int = 0
    checks: int = 0
    recovery_seconds: float = 0.0
    left: dict[str, int] = field(default_factory=dict)


def run_soak(plan: Plan, directory: Path, say: Any = print) -> dict[str, Any]:
    """Runs rounds until the time is over; returns what they found, as JSON holds it, with `ok` and `problems`."""
    _tell_allocator(_keep_no_arenas)
    model = Model(plan.seed, plan.keep)
    index, counters = directory / "index", directory / "counters"
    acknowledged = np.memmap(counters, np.int64, "w+", shape=(len(WRITERS),))
    with xtree.Runtime(index, mode="x", config=xtree.Config(**CONFIG)) as runtime:
        model.create(runtime)
    rounds: list[Round] = []
    problems: list[str] = []
    live_bytes = 0
    end = monotonic() + 60 * plan.minutes
    try:
        while monotonic() < end or not rounds:
            number = len(rounds)
            round_ = Round(number, MODES[number % len(MODES)], killed=number % 2 == 1)
            rounds.append(round_)
            seconds = max(0.5, min(plan.round_seconds, end - monotonic()))
            live_bytes = _run(round_, plan, model, index, counters, acknowledged, seconds)
            round_.left = _left_over(index, model)
            say(_line(round_, live_bytes))
        round_ = Round(len(rounds), MODES[0], killed=False)
        rounds.append(round_)
        live_bytes = _run(round_, plan, model, index, counters, acknowledged, None)
        round_.left = _left_over(index, model)
        say(_line(round_, live_bytes))
        problems += _waste(round_.left, live_bytes, plan.space_factor)
    except (SoakError, xtree.XTreeError, OSError) as error:
        problems.append(f"round {rounds[-1].number}: {type(error).__name__}: {error}")
    problems += _growth(rounds[:-1])
    for problem in problems:
        say(f"PROBLEM {problem}")
    say(f"seed {plan.seed}: {len(rounds)} rounds, {'fine' if not problems else f'{len(problems)} problem(s)'}")
    return {
        "ok": not problems,
        "problems": problems,
        "plan": asdict(plan),
        "live_bytes": live_bytes,
        "rounds": [asdict(round_) for round_ in rounds],
    }


def _run(
    round_: Round,
    plan: Plan,
    model: Model,
    index: Path,
    counters: Path,
    acknowledged: np.ndarray,
    seconds: float | None,
) -> int:
    """Runs a round, the last one without a time; returns the bytes of live pages. Raises SoakError, errors of xtree."""
    started = monotonic()
    before = acknowledged.copy()
    if round_.killed and seconds is not None:
        _work_and_die(round_, plan, index, counters, seconds)
    opened = monotonic()
    config = xtree.Config(**{**CONFIG, "durability": round_.mode})
    with xtree.Runtime(index, mode="r+", config=config) as runtime:
        round_.recovery_seconds = monotonic() - opened
        if round_.killed:
            found = model.steps(runtime)
            _require_acknowledged(acknowledged.tolist(), found)
            acknowledged[:] = found
        else:
            work = Work(runtime, model, acknowledged, plan.snapshot_seconds)
            if seconds is None:
                work.turn_over(REST_S)
            else:
                work.run(seconds)
            round_.checks = work.counts["checks"]
            if model.steps(runtime) != acknowledged.tolist():
                raise SoakError(f"after steps {model.steps(runtime)}, {acknowledged.tolist()} were committed")
        runtime.check()
        live_bytes = sum(runtime.tree(name).stats()["bytes"] for name in runtime.trees())
    round_.steps = int((acknowledged - before).sum()) if before.any() else int(acknowledged.sum())
    round_.seconds = monotonic() - started
    return live_bytes


def _work_and_die(round_: Round, plan: Plan, index: Path, counters: Path, seconds: float) -> None:
    """Has a child work on the index for a while, and kills it."""
    arguments = [str(index), str(plan.seed), str(plan.keep), round_.mode, str(counters), str(plan.snapshot_seconds)]
    command = [sys.executable, "-m", "xtree.tools.soak.work", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        ready = child.stdout.readline()
        try:
            child.wait(seconds * random.Random(f"{plan.seed} {round_.number}").random() if ready else None)
        except subprocess.TimeoutExpired:
            child.kill()
            return
        raise SoakError(f"the child ended by itself with status {child.returncode}:\n{child.stderr.read()}")


def _require_acknowledged(acknowledged: list[int], found: list[int]) -> None:
    """After a kill each writer's last acknowledged step is there, and at most the one that it was in."""
    for writer, told, there in zip(WRITERS, acknowledged, found):
        if not told <= there <= told + 1:
            raise SoakError(f"writer {writer!r} was told that step {told} is committed; step {there} was recovered")


def _left_over(index: Path, model: Model) -> dict[str, int]:
    """What this process and the disk still hold when the index is closed."""
    model.forget()
    gc.collect()
    _tell_allocator(lambda library: library.malloc_trim(0))
    data = [file for file in index.iterdir() if filenames.parse_data(file.name) is not None]
    left = {"disk": allocated_bytes(index.iterdir()), "data": allocated_bytes(data)}
    if os.path.isdir("/proc/self/fd"):
        with open("/proc/self/maps") as maps, open("/proc/self/statm") as memory:
            left["mappings"] = sum(1 for _ in maps)
            left["resident"] = int(memory.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        left["descriptors"] = len(os.listdir("/proc/self/fd"))
    return left


def _tell_allocator(what: Callable[[Any], object]) -> None:
    """Tells the C library's allocator something, if it understands it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        what(ctypes.CDLL(None))


def _keep_no_arenas(library: Any) -> None:
    """One arena, and large blocks by mmap: what is freed goes back to the system, so that resident means in use."""
    library.mallopt(M_ARENA_MAX, 1)
    library.mallopt(M_MMAP_THRESHOLD, 128 << 10)


def _growth(rounds: list[Round]) -> list[str]:
    """What has grown since everything had settled, by the rounds that worked in this process."""
    steady = [round_ for round_ in rounds[STEADY_AFTER:] if round_.left and not round_.killed]
    third = len(steady) // 3
    parts = (steady[:third], steady[-third:])
    problems = []
    for what in steady[0].left if third > 1 else ():
        early, late = (median(round_.left[what] for round_ in part) for part in parts)
        busier = 1.0
        if what in PER_COMMIT:
            before, after = (median(round_.steps for round_ in part) for part in parts)
            busier = max(1.0, after / max(before, 1))
        if late > early * GROWTH_ALLOWED[what] * busier + SLACK[what]:
            problems.append(f"{what} grew from {early:,.0f} to {late:,.0f}, commits {busier:.2f} times")
    return problems


def _waste(left: dict[str, int], live_bytes: int, factor: float) -> list[str]:
    """What is wrong with the space that the whole directory takes: data files, checkpoints, logs and all."""
    if live_bytes < SMALLEST_JUDGED or left["disk"] <= factor * live_bytes:
        return []
    return [
        f"{left['disk']:,} bytes on the disk, {left['data']:,} of them data files, for {live_bytes:,} bytes of live "
        f"pages: more than {factor:g} times as many"
    ]


def _line(round_: Round, live_bytes: int) -> str:
    left = round_.left
    parts = [
        f"round {round_.number}",
        f"{round_.mode:<8} {'killed' if round_.killed else 'closed'} {round_.seconds:5.1f} s",
        f"{round_.steps:,} commits, {round_.checks:,} checks, opened in {round_.recovery_seconds:.2f} s",
        f"live {live_bytes / 1e6:.1f} MB, data files {left['data'] / 1e6:.1f} MB, all {left['disk'] / 1e6:.1f} MB",
    ]
    if "resident" in left:
        parts.append(f"resident {left['resident'] / 1e6:.0f} MB, {left['descriptors']} fds, {left['mappings']} maps")
    return " | ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="soak", description="An index at work, killed, reopened and checked.")
    for name, default in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--dir", type=Path, help="where the index is made; a temporary directory by default")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    given = vars(parser.parse_args(arguments))
    parent, json_file = given.pop("dir"), given.pop("json")
    directory = Path(tempfile.mkdtemp(prefix="xtree-soak-", dir=parent))
    result = run_soak(Plan(**given), directory, lambda line: print(line, flush=True))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if result["ok"]:
        shutil.rmtree(directory)
    else:
        print(f"the index is in {directory}")
    return 0 if result["ok"] else 1
