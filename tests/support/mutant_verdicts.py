"""What becomes of a mutant: it is refused with the right words, or the answers are right; anything else is a flaw.

Mutants are tried in child processes, many in each, so that a crash or a hang can be blamed on one mutant.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crc32c import crc32c
from page_stack import StackState

import xtree
from support.accidental_mutants import Mutant
from support.forged_files import checkpoints_of, frames_of, logs_of, manifest_of
from support.sample_indexes import CONFIG, Files, Index, answers, answers_of, answers_of_stack, lay_out, read_files
from xtree.errors import CapacityError, CorruptionError, FormatVersionError, StoreFailedError
from xtree.persistence.files import filenames
from xtree.persistence.files.checkpoint import BODY, PREFIX
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.frame import FRAME_HEADER_BYTES, LINK, FrameHeader
from xtree.persistence.files.superblock import Superblock

REFUSALS = (CorruptionError, FormatVersionError)
MOST_BYTES = 1 << 30  # of address space that a child may add to what it begins with
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
GOING_ON = 4  # one in so many mutants that answer is also written to, and opened again
PATIENCE_S = 100 if SANITIZED else 60  # after which a mutant counts as hanging; most take 0.01 s
WRITE = ([2**62], [[0.25] * 128])  # a record that no index has


class Flaw(AssertionError):
    """Something that must never happen."""


def vouched(index: Index, files: Files) -> int:
    """The last epoch that an unchanged part of the files says to be on the disk."""
    known = [0]
    healthy = index.files
    superblock = files.get(filenames.SUPERBLOCK, b"")
    for at in (0, HEADER_BYTES):
        page = superblock[at:at + HEADER_BYTES]
        if page == healthy[filenames.SUPERBLOCK][at:at + HEADER_BYTES]:
            known.append(Superblock.decode(page, "").durable_epoch)
    if files.get(filenames.MANIFEST) == healthy[filenames.MANIFEST]:
        values = manifest_of(healthy)
        known += [entry["epoch"] for entry in values["checkpoints"]]
        known += [entry["closed"]["last_epoch"] for entry in values["logs"] if entry["closed"]]
    known += [BODY.unpack_from(healthy[name], PREFIX.size)[1] for name in checkpoints_of(healthy)
              if files.get(name) == healthy[name]]
    for name in logs_of(healthy):
        data, now = healthy[name], files.get(name, b"")
        if data[:HEADER_BYTES] != now[:HEADER_BYTES]:
            continue
        for at, length in frames_of(data):
            if data[at:at + length] == now[at:at + length]:
                header = FrameHeader(data[at:at + FRAME_HEADER_BYTES])
                known.append(header.durable_through)
                if at == HEADER_BYTES:
                    known.append(LINK.unpack_from(data, at + FRAME_HEADER_BYTES)[1])
    return max(known)


def remains(index: Index, files: Files, epoch: int) -> bool:
    """Whether anything but zeros stands where frames of later epochs were."""
    for name in logs_of(index.files):
        data = index.files[name]
        for at, length in frames_of(data):
            later = FrameHeader(data[at:at + FRAME_HEADER_BYTES]).last_epoch > epoch
            if later and any(files.get(name, b"")[at:at + length]):
                return True
    return False


class Judge:
    """Judges the mutants of one index, in a directory of its own."""

    def __init__(self, index: Index, path: Path) -> None:
        self.index = index
        self.path = path
        self.names = set(index.files) | {name for older in index.older for name in older}
        self.history = [json.loads(json.dumps(answered)) for answered in index.history.values()]

    def judge(self, mutant: Mutant) -> str:
        """"refused", "partly refused" or "answered". Raises Flaw."""
        changes = mutant.files()
        files = {name: data for name, data in {**self.index.files, **changes}.items() if data is not None}
        outcomes = []
        for mode in ("r", "a"):
            lay_out(self.path, files)
            try:
                outcomes.append(self._open(mutant, mode, files, set(changes)))
            except Flaw as flaw:
                raise Flaw(f"mode {mode}: {flaw}") from flaw.__cause__
            if mode == "r" and read_files(self.path) != files:
                raise Flaw("reading has changed a file")
        return outcomes[0]

    def _open(self, mutant: Mutant, mode: str, files: Files, changed: set[str]) -> str:
        try:
            runtime = xtree.Runtime(self.path, mode, config=CONFIG)
        except REFUSALS as error:
            self._require_words(mutant, error, changed)
            self._require_untouched(files)
            return "refused"
        except CapacityError as error:
            if not mutant.forged or mode == "r":
                raise Flaw(f"the open raised {error}") from error
            return "refused"  # no number is left for a file that recovery has to write
        except FileNotFoundError as error:
            if mode == "r" and not any(filenames.is_ours(name) and name != filenames.MANIFEST for name in files):
                return "refused"
            raise Flaw("not found") from error
        except Exception as error:
            raise Flaw(f"the open raised {type(error).__name__}: {error}") from error
        try:
            outcome, found = self._question(mutant, runtime, files, changed)
            going_on = mode == "a" and outcome == "answered" and crc32c(mutant.what.encode()) % GOING_ON == 0
            if going_on:
                self._write(mutant, runtime)
        finally:
            try:
                runtime.close()
            except REFUSALS as error:
                if outcome == "answered":
                    raise Flaw(f"closing raised {error}") from error
        if going_on and not mutant.forged:
            with xtree.Runtime(self.path, "r", config=CONFIG) as again:
                if json.loads(json.dumps(answers(again))) != found:
                    raise Flaw("other answers after recovery, a write and a clean close")
        return outcome

    def _question(self, mutant: Mutant, runtime: xtree.Runtime, files: Files, changed: set[str]) -> tuple[str, Any]:
        """Asks all structures everything, then runs check()."""
        refused: list[Exception] = []
        found: dict[str, Any] = {}

        def ask(name: str, question: Callable[[], Any]) -> None:
            try:
                found[name] = json.loads(json.dumps(question()))
            except REFUSALS as error:
                refused.append(error)
            except Exception as error:
                raise Flaw(f"{name}: a question raised {type(error).__name__}: {error}") from error

        names = runtime.trees()
        for name in names:
            ask(name, lambda name=name: answers_of(runtime.tree(name)))
        for name, kind in runtime.structures().items():
            if kind == StackState.kind:
                names.append(name)
                ask(name, lambda name=name: answers_of_stack(runtime, name))
        try:
            runtime.check()
        except REFUSALS as error:
            for one in (error, *refused):
                self._require_words(mutant, one, changed)
            self._require_parts(mutant, found)
            return "partly refused", found
        except Exception as error:
            raise Flaw(f"check() raised {type(error).__name__}: {error}") from error
        if refused:
            if mutant.forged and set(runtime.structures()) & (set(names) - set(found)):
                return "partly refused", found  # only the structure itself knows what is in its pages
            raise Flaw(f"check() finds nothing, yet a question was refused: {refused[0]}")
        self._require_right(mutant, runtime, found, files)
        return "answered", found

    def _require_right(self, mutant: Mutant, runtime: xtree.Runtime, found: Any, files: Files) -> None:
        found = json.loads(json.dumps(found))
        if mutant.forged:
            if not mutant.harmless and found not in self.history:
                raise Flaw("what is forged is believed")
            return
        stats = runtime.stats()
        recovery = stats["recovery"]
        epoch = recovery["epoch"]
        if epoch not in self.index.history:
            raise Flaw(f"recovered epoch {epoch}, which never was")
        if found != json.loads(json.dumps(self.index.history[epoch])):
            raise Flaw(f"wrong answers for epoch {epoch}")
        if epoch < self.index.last_epoch and epoch < vouched(self.index, files):
            raise Flaw(f"epoch {epoch} of {self.index.last_epoch}, though {vouched(self.index, files)} was vouched for")
        if epoch < self.index.last_epoch and not recovery["notes"] and remains(self.index, files, epoch):
            raise Flaw(f"epoch {epoch} of {self.index.last_epoch}, and no word of what was cut off")

    def _require_parts(self, mutant: Mutant, found: dict[str, Any]) -> None:
        """Requires that what one structure answers is right, even if another one has refused."""
        if mutant.forged:
            return
        for name, answered in found.items():
            if not any(state.get(name) == answered for state in self.history):
                raise Flaw(f"{name}: a wrong answer before check() found damage")

    def _require_words(self, mutant: Mutant, error: Exception, changed: set[str]) -> None:
        """Requires that an error names a file of the index, or if forged perhaps only the page or the structure."""
        said = str(error)
        if not any(name in said for name in self.names | changed) and not mutant.forged:
            raise Flaw(f"an error that names no file: {said}") from error
        if not said.isascii() and not said.isprintable():
            raise Flaw(f"an error that can't be printed: {said!r}") from error

    def _require_untouched(self, files: Files) -> None:
        """Requires that a refused open has changed nothing but data files: recovery may have written pages."""
        now = read_files(self.path)
        for name, data in files.items():
            if filenames.parse_data(name) is None and now.get(name) != data:
                raise Flaw(f"a refused open has changed {name}")

    def _write(self, mutant: Mutant, runtime: xtree.Runtime) -> None:
        """Inserts a record into each tree and deletes it again."""
        for name in runtime.trees():
            tree = runtime.tree(name)
            row = WRITE[1][0][:2 * tree.dims]
            try:
                tree.insert(WRITE[0][0], row)
                if not tree.delete(WRITE[0][0], row):
                    raise Flaw(f"{name}: a new record isn't found")
            except (*REFUSALS, CapacityError, StoreFailedError) as error:
                if not mutant.forged:
                    raise Flaw(f"{name}: a write raised {error}") from error
                return
            except Exception as error:
                raise Flaw(f"{name}: a write raised {type(error).__name__}: {error}") from error


# Child processes.


def try_all(index: Index, mutants: Sequence[Mutant], path: Path) -> tuple[Counter[str], list[str]]:
    """How many mutants had each verdict, and what is wrong with those that had none."""
    outcomes: Counter[str] = Counter()
    flaws: list[str] = []
    first = 0
    while first < len(mutants):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _be_the_child(index, mutants[first:], path, writer)
        os.close(writer)
        with os.fdopen(reader, "r", encoding="utf-8") as lines:
            for line in lines:
                outcome, words = json.loads(line)
                if outcome == "begun":
                    continue
                outcomes[outcome] += 1
                if outcome == "flaw":
                    flaws.append(f"{index.kind}: {mutants[first].what}: {words}")
                first += 1
        _, result = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(result)
        if code:
            outcomes["flaw"] += 1
            flaws.append(f"{index.kind}: {mutants[first].what}: the process ended with {code}")
            first += 1
    return outcomes, flaws


def _be_the_child(index: Index, mutants: Sequence[Mutant], path: Path, writer: int) -> None:
    status = 1
    try:
        if not SANITIZED:
            room = _address_space() + MOST_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.freeze()
        judge = Judge(index, path)
        for mutant in mutants:
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
            _tell(writer, "begun", mutant.what)
            try:
                _tell(writer, judge.judge(mutant), "")
            except Flaw as flaw:
                _tell(writer, "flaw", str(flaw))
            except Exception:
                _tell(writer, "flaw", traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
        status = 0
    finally:
        with contextlib.suppress(BaseException):
            os.close(writer)
        os._exit(status)


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _tell(writer: int, outcome: str, words: str) -> None:
    data = (json.dumps([outcome, words]) + "\n").encode()
    while data:
        data = data[os.write(writer, data):]
