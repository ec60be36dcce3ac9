"""The process in which `bench index` builds one index, to see how much memory that takes.

    python -m xtree.tools.bench.peak CONTESTANT BOXES.npy DIRECTORY

Prints one JSON object: peak (bytes resident at the most, beyond what there was before), hits (of a window around all).
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np

from xtree.tools.bench.report import Report
from xtree.tools.bench.tree_peers import memory_peers
from xtree.tools.bench.trees import Contestant, DurableTree, MemoryTree

__all__ = ["measure"]


def measure(name: str, file: Path, directory: Path) -> dict[str, int]:
    """Builds the index of a contestant of this name and says what it took. Raises KeyError for an unknown name."""
    contestants: list[Contestant] = [MemoryTree(), DurableTree(directory), *memory_peers(Report(lambda _: None))]
    contestant = {contestant.name: contestant for contestant in contestants}[name]
    boxes = np.load(file)
    _build(contestant, boxes[:1000])  # what is loaded and set up at the first use is no part of it
    before = _status("VmRSS")
    _build(contestant, boxes)
    peak = max(_status("VmHWM") - before, 0)
    everything = np.array([[*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]])
    trial = contestant.search(everything)
    assert trial is not None
    answer = trial.found()
    assert answer is not None
    contestant.close()
    return {"peak": peak, "hits": int(answer.offsets[-1])}


def _build(contestant: Contestant, boxes: np.ndarray) -> None:
    trial = contestant.build(boxes)
    assert trial is not None
    trial.run()


def _status(key: str) -> int:
    """Bytes that this process uses, by the system: VmRSS now, VmHWM at the most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent ends this process
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
