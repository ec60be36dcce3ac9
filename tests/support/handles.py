"""Handles of this process and of others on one directory, for tests of sharing, forks and pickles."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import xtree

BOX = [0.0, 0.0, 1.0, 1.0]

OPENS = """
import sys, xtree
try:
    with xtree.open(sys.argv[1], mode=sys.argv[2]) as tree:
        print(len(tree))
except xtree.LockedError as error:
    print(error)
"""
HOLDS = """
import sys, xtree
tree = xtree.open(sys.argv[1], mode=sys.argv[2])
print("open", flush=True)
sys.stdin.read()
"""


def make(path: Path) -> Path:
    """Makes an index with one tree, "default", of one record."""
    with xtree.open(path, dims=2) as tree:
        tree.insert(1, BOX)
    return path


def leave_unclean(path: Path, records: int = 1) -> None:
    """Has a process add records, one by one, and kills it."""
    child = os.fork()
    if not child:
        tree = xtree.open(path, dims=2)
        for i in range(records):
            tree.insert(2 + i, BOX)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def elsewhere(path: Path, mode: str = "a") -> str:
    """What another process says when it opens the index: the number of records, or why it can't."""
    command = [sys.executable, "-c", OPENS, str(path), mode]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def held_elsewhere(path: Path, mode: str) -> Iterator[subprocess.Popen]:
    """Another process has the index open during the block; it ends with its standard input."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "open\n"
    try:
        yield holder
    finally:
        holder.communicate()
