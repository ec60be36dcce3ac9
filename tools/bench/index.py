"""`bench index`: what trees cost, beside other spatial indexes, every answer checked.

Ratios compare samples of one run; absolute times say as much about the machine as about xtree. Run it while the
machine is quiet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import xtree
from xtree.tools.bench.build import measure_builds, measure_durable_builds, measure_peaks
from xtree.tools.bench.data import Data, data_of
from xtree.tools.bench.queries import measure_empty, measure_join, measure_nearest, measure_windows
from xtree.tools.bench.report import Report, machine
from xtree.tools.bench.tree_peers import memory_peers
from xtree.tools.bench.trees import Contestant, DurableTree, MemoryTree
from xtree.tools.bench.writes import (
    measure_deletes,
    measure_growth,
    measure_losses,
    measure_orders,
    measure_packed_growth,
)

__all__ = ["FULL", "QUICK", "IndexScale", "bench_index"]


@dataclass(frozen=True)
class IndexScale:
    """How much is measured.

    rounds: samples of each figure. windows: small, medium and large ones in a batch. judged_from: records from which on
    the targets count.
    """

    rounds: int = 5
    records: tuple[int, ...] = (1_000_000,)
    windows: tuple[int, int, int] = (20_000, 5_000, 200)
    many_windows: int = 1_000_000  # small ones
    single_windows: int = 1000
    points: int = 5000
    grown_records: int = 1_000_000  # inserted into an empty index, at the most: SQLite takes a minute
    more_inserts: int = 10_000  # into an index that has records
    ordered_records: int = 50_000
    deletes: int = 2000
    judged_from: int = 1_000_000


FULL = IndexScale()
QUICK = IndexScale(
    records=(50_000,),
    windows=(2000, 1000, 50),
    many_windows=20_000,
    single_windows=200,
    points=500,
    grown_records=20_000,
    more_inserts=2000,
    ordered_records=5000,
    deletes=500,
)


def bench_index(
    scale: IndexScale = FULL,
    directory: Path | None = None,
    say: Callable[[str], None] = print,
    sources: Sequence[str] = ("uniform",),
    records: Sequence[int] = (),
) -> dict[str, Any]:
    """Measures everything and returns it as JSON holds it; prints each figure as it comes.

    directory: where indexes are made, on the disk to be measured; a temporary one below it is removed in the end.
    sources: "uniform", "clustered", "points", "cities" or files of boxes. records: how many of them, one run for each;
    those of the scale when empty.

    Raises WrongAnswerError when xtree gave a wrong answer; another index that gives one has no figure there. Raises
    TableError, OSError for a file that can't be read.
    """
    scale = replace(scale, records=tuple(records) or scale.records)
    started = perf_counter()
    runs = []
    with tempfile.TemporaryDirectory(prefix="xtree-bench-", dir=directory, ignore_cleanup_errors=True) as place:
        for data in _all_data(sources, scale.records):
            report = Report(say, judging=len(data.boxes) >= scale.judged_from)
            say(f"\n=== {len(data.boxes):,} records, {data.name}")
            _measure(report, scale, data, Path(place))
            runs.append(_run_of(report, scale, data, say))
    seconds = perf_counter() - started
    return {
        "benchmark": "index",
        "xtree": xtree.__version__,
        "machine": machine(),
        "scale": asdict(scale),
        "seconds": seconds,
        "runs": runs,
    }


def _all_data(sources: Sequence[str], records: Sequence[int]) -> Iterator[Data]:
    """The data of each run, one after the other; data that is shorter than asked for comes once."""
    for source in sources:
        seen = set()
        for number in records:
            data = data_of(source, number)
            if len(data.boxes) not in seen:
                seen.add(len(data.boxes))
                yield data


def _measure(report: Report, scale: IndexScale, data: Data, directory: Path) -> None:
    """All tables of one set of data."""
    durable = DurableTree(directory / "durable")
    contestants: list[Contestant] = [MemoryTree(), durable, *memory_peers(report)]
    in_memory = [contestant for contestant in contestants if contestant is not durable]
    try:
        measure_builds(report, scale, data, in_memory)
        measure_durable_builds(report, scale, data, directory, durable)
        measure_windows(report, scale, data, contestants)
        measure_nearest(report, scale, data, contestants)
        measure_join(report, scale, data, contestants)
        measure_deletes(report, scale, data, contestants)
        measure_empty(report, scale, data, contestants)
        measure_growth(report, scale, data, contestants, directory)
    finally:
        for contestant in contestants:
            contestant.close()
    measure_packed_growth(report, scale, data, directory)
    measure_orders(report, scale, data, directory)
    measure_losses(report, scale, data, directory)
    measure_peaks(report, scale, data, directory)


def _run_of(report: Report, scale: IndexScale, data: Data, say: Callable[[str], None]) -> dict[str, Any]:
    """What JSON holds of one set of data; says which targets were missed."""
    missed = [line for figure in report.figures for line in figure.missed()]
    judged = sum(len(figure.targets) for figure in report.figures)
    if report.judging:
        say(f"\n{judged - len(missed)} of {judged} targets met{'; missed:' if missed else ''}")
    else:
        say(f"\ntargets are for {scale.judged_from:,} records and more")
    for line in missed:
        say(f"  {line}")
    return {
        "data": data.name,
        "records": len(data.boxes),
        "figures": [figure.as_dict() for figure in report.figures],
        "skipped": report.skipped,
        "missed": missed,
    }
