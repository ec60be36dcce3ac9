"""Makes the golden files: small indexes in the present formats, and what they hold.

    python tests/golden/make_golden.py

writes tests/golden/<versions of all formats>/ with a .tar.xz of each directory and a .json of its content, and removes
those of other versions, none of which was released. tests/files/test_golden.py reads them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import numpy as np
from page_stack import PageStack, StackState
from support.sample_indexes import read_files
from support.text_pages import by_request, settle

import xtree
from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import PREFIX
from xtree.persistence.files.frame import FRAME_MAGIC
from xtree.persistence.files.manifest import FORMAT as MANIFEST_FORMAT

HERE = Path(__file__).parent
FRAME_FORMAT_OFFSET = 46
PAGE_FORMAT_OFFSET = 18
INDEXES = ("closed", "killed")


def versions_of(path: Path) -> str:
    """The versions of all formats, read from the files of an index that has a log."""
    found: dict[str, int] = {"manifest": MANIFEST_FORMAT}
    for name, data in read_files(path).items():
        kinds = {"superblock": name == filenames.SUPERBLOCK, "checkpoint": filenames.parse_checkpoint(name),
                 "log": filenames.parse_log(name), "data": filenames.parse_data(name)}
        for kind, is_one in kinds.items():
            if is_one:
                found[kind] = PREFIX.unpack_from(data)[2]
        if filenames.parse_log(name) and data[4096:4100] == FRAME_MAGIC:
            found["frame"] = int.from_bytes(data[4096 + FRAME_FORMAT_OFFSET:][:2], "little")
        if filenames.parse_data(name):
            found["page"] = int.from_bytes(data[4096 + PAGE_FORMAT_OFFSET:][:2], "little")
    with xtree.Runtime(path, "r") as runtime:
        entry = next(entry for entry in runtime._store.published.catalog if entry.kind == "xtree")
        found["tree"] = int.from_bytes(entry.state[:2], "little")
    return "-".join(f"{kind}{version}" for kind, version in sorted(found.items()))


def contents(path: Path) -> dict[str, Any]:
    """Everything that an index holds, as JSON has it."""
    with xtree.Runtime(path, "r") as runtime:
        runtime.check()
        found: dict[str, Any] = {}
        for name in runtime.trees():
            ids, boxes = runtime.tree(name).items()
            found[name] = sorted([number, *box] for number, box in zip(ids.tolist(), boxes.tolist(), strict=True))
        for name in runtime.structures():
            found[name] = [item.decode() for item in PageStack(runtime.structure(name, StackState))]
        return found


def records(first: int, n: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Records whose coordinates are short in JSON."""
    rng = np.random.default_rng(first)
    low = rng.integers(0, 1000, (n, dims)) / 8
    return np.arange(first, first + n), np.hstack([low, low + rng.integers(0, 40, (n, dims)) / 8])


def fill(runtime: xtree.Runtime) -> None:
    """Makes trees of two and of seven dimensions, with supernodes, and a stack; deletes records and drops a tree."""
    flat, deep = runtime.tree("flat", dims=2), runtime.tree("deep", dims=7)
    flat.insert_many(*records(0, 150, 2))
    deep.insert_many(*records(1000, 60, 7))
    runtime.tree("dropped", dims=3).insert_many(*records(2000, 20, 3))
    stack = PageStack(runtime.structure("stack", StackState))
    for i in range(4):
        stack.push(b"%d " % i + b"x" * 1500)
    runtime.checkpoint()
    runtime.drop("dropped")
    flat.delete_many(*records(0, 10, 2))
    with runtime.transaction(trees=["flat", "stack"]) as tx:
        tx.tree("flat").insert_many(*records(3000, 5, 2))
        PageStack(tx.structure("stack")).pop()
    deep.insert_many(*records(4000, 2, 7))


def make(path: Path, killed: bool) -> None:
    """Makes an index in a child process, which ends with or without closing it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            runtime = xtree.Runtime(path, config=by_request())
            fill(runtime)
            settle(runtime._store)
            if not killed:
                runtime.close()
            status = 0
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("no golden files were made")


def pack(path: Path, archive: Path) -> None:
    """Puts a directory into an archive that says nothing of who made it and when."""
    with tarfile.open(archive, "w:xz", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in read_files(path).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def unpack(archive: Path, path: Path) -> None:
    """Makes a directory from an archive."""
    path.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            (path / member.name).write_bytes(stream.read())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in INDEXES:
            make(Path(folder) / name, killed=name == "killed")
        target = HERE / versions_of(Path(folder) / "killed")
        for old in HERE.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        target.mkdir()
        for name in INDEXES:
            pack(Path(folder) / name, target / f"{name}.tar.xz")
            (target / f"{name}.json").write_text(json.dumps(contents(Path(folder) / name)) + "\n")
    for file in sorted(target.iterdir()):
        print(f"{file.stat().st_size:8,} {file}")


if __name__ == "__main__":
    main()
