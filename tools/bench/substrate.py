"""`bench substrate`: what the store beneath the trees costs, measured on this machine and checked as it goes.

Ratios compare samples of one run; absolute times say as much about the machine as about xtree. Run it while the
machine is quiet.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from xtree.tools.bench.checkpoints import measure_checkpoints
from xtree.tools.bench.commits import THREADS, measure_commits
from xtree.tools.bench.groups import measure_groups
from xtree.tools.bench.growth import measure_growth
from xtree.tools.bench.memory import measure_memory
from xtree.tools.bench.recovery import measure_recovery
from xtree.tools.bench.report import Report
from xtree.tools.bench.size import measure_size
from xtree.tools.bench.writers import measure_writers

__all__ = ["FULL", "QUICK", "Scale", "bench_substrate", "write_json"]

MIB = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How much is measured. rounds: samples of each figure."""

    rounds: int = 5
    nodes: tuple[int, ...] = (200_000, 2_000_000)
    allocations: int = 2_000_000
    threads: tuple[int, ...] = THREADS
    tree_records: int = 100_000
    writer_records: int = 200_000
    commit_seconds: float = 0.3
    checkpoint_records: int = 1_000_000
    checkpoint_commits: int = 5_000
    small_commits: int = 200_000
    large_records: int = 10_000_000
    large_log_bytes: int = 256 * MIB
    grown_records: int = 1_000_000


FULL = Scale()
QUICK = Scale(
    nodes=(200_000,),
    allocations=200_000,
    tree_records=10_000,
    writer_records=20_000,
    commit_seconds=0.03,
    checkpoint_records=100_000,
    checkpoint_commits=500,
    small_commits=5_000,
    large_records=300_000,
    large_log_bytes=16 * MIB,
    grown_records=50_000,
)


def bench_substrate(
    scale: Scale = FULL, directory: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measures everything and returns it as JSON holds it; prints each figure as it comes.

    directory: where indexes are made, on the disk to be measured; a temporary one below it is removed in the end.
    Raises WrongAnswerError when something that was measured gave a wrong result.
    """
    report = Report(say)
    started = perf_counter()
    with tempfile.TemporaryDirectory(prefix="xtree-bench-", dir=directory, ignore_cleanup_errors=True) as place:
        here = Path(place)
        measure_memory(report, scale)
        measure_commits(report, scale, here)
        measure_writers(report, scale, here)
        measure_groups(report, scale, here)
        measure_growth(report, scale, here)
        measure_checkpoints(report, scale, here)
        measure_recovery(report, scale, here)
        measure_size(report, scale, here)
    return report.as_dict(benchmark="substrate", scale=asdict(scale), seconds=perf_counter() - started)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes a result where programs find it."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
