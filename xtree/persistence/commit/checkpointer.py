"""The checkpointer: a thread that takes checkpoints while commits go on, and makes logs in advance.

A checkpoint has two halves. `begin` runs between two groups, in the leader: the log ends, and the rows and the catalog
of its last epoch are copied. `complete` reads top to bottom and runs in the checkpointer's thread: sync the data files,
write the checkpoint, the manifest, the superblock, collect garbage. A slot that is used again meanwhile was retired by
a later commit, and the log that says so is kept.

There is one checkpoint at a time. `begin` takes the checkpoint lock, `complete` releases it, and no log is made ahead
meanwhile. A thread that holds it never waits for the leader, so the leader may wait for it.

A failed sync poisons the store. Any other failure is counted, logged, and handed to those who asked and to the user's
callback; what was due is tried again after a pause.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from xtree.errors import StoreFailedError
from xtree.persistence.base.clock import Clock
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.lock_ranks import FREE, Worker, rank_held
from xtree.persistence.base.threads import start_worker
from xtree.persistence.commit.backpressure import Backpressure
from xtree.persistence.commit.checkpoint_policy import CheckpointPolicy, Pause
from xtree.persistence.commit.commit_queue import CommitQueue, Request
from xtree.persistence.commit.index_files import IndexFiles
from xtree.persistence.commit.reclaimer import Reclaimer
from xtree.persistence.files import checkpoint as checkpoints
from xtree.persistence.files.filenames import checkpoint_name
from xtree.persistence.files.frame import LogLink
from xtree.persistence.files.platform_fs import SyncFailedError
from xtree.persistence.store.store import Store

log = logging.getLogger("xtree")

RECLAIM_INTERVAL_S = 1.0  # between two looks at retired pages that somebody pinned

T = TypeVar("T")
OnError = Callable[[BaseException], object]


@dataclass(frozen=True)
class Copy:
    """What a checkpoint will hold: the state of one epoch, and how the log before the next epoch ended."""

    epoch: int
    table: checkpoints.Table
    catalog: bytes
    last_log: LogLink
    started: float


@dataclass
class Counters:
    """What the checkpointer has done since the directory was opened; times in seconds."""

    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint_seconds_last: float = 0.0
    checkpoint_seconds_max: float = 0.0
    checkpoint_failures: int = 0
    checkpoint_reason: str | None = None
    spares_made: int = 0
    spare_failures: int = 0


class Leader(Protocol):
    """What a checkpointer asks of the coordinator, which carries the commits.

    failure: what poisoned the store. following_epoch: that of the next commit. durable_epoch: the last one that is on
    the disk for certain.
    """

    store: Store
    index_files: IndexFiles
    failure: BaseException | None
    following_epoch: int
    durable_epoch: int

    def sync_log(self) -> None:
        """Syncs the log: every commit so far is on the disk when this returns. Between two groups."""

    def between_groups(self, function: Callable[[], T]) -> T:
        """Has the leader call a function between two groups, and waits: returns its result, or raises its error."""

    def poisoning_failed_syncs(self) -> contextlib.AbstractContextManager[None]:
        """A block in which a failed sync poisons the store."""


class Checkpointer:
    """Checkpoints, logs made ahead, log garbage, and reclaim while nobody commits, of one store."""

    def __init__(self, coordinator: Leader, clock: Clock, on_error: OnError | None) -> None:
        self.counters = Counters()
        self.last_error: BaseException | None = None
        self.reclaimer = Reclaimer(coordinator.store)
        self._coordinator = coordinator
        self._store = coordinator.store
        self.index_files = coordinator.index_files
        self._clock = clock
        self._on_error = on_error
        self._policy = CheckpointPolicy(coordinator.index_files.config, clock)
        self._backpressure = Backpressure(
            self.index_files.config, clock, lambda: self.index_files.uncovered_bytes, self._demand
        )
        self.crowded_from = self._backpressure.slow_from  # with less log in no checkpoint nobody waits for room
        self._queue = CommitQueue(clock)
        self._checkpoint_lock = threading.Lock()
        self._thread: Worker | None = None
        # These two and _rotations_seen are set before the thread looks at what it waits for; a thread that commits
        # reads them with the GIL to see whether to wake this one, so that no commit is missed.
        self._unaware = True  # the thread waits for the first commit that no checkpoint holds
        self._reclaiming = False  # the thread looks at retired pages now and then
        self._spare_pause = Pause()
        self._log_number = 0  # the open log whose age is measured
        self._log_since = 0.0
        self._rotations_seen = 0

    # Called by users' threads.

    def request(self) -> None:
        """Has a checkpoint taken that begins after this call, and waits for it; none is taken if nothing is new.

        Raises OSError, StoreFailedError.
        """
        self._queue.submit(Request("checkpoint"))

    def wait_for_room(self, timeout: float | None) -> None:
        """Waits, for a limited time, until less than Config.log_limit_bytes of the log is in no checkpoint.

        Raises TimeoutError, ClosedError, StoreFailedError.
        """
        if rank_held() == FREE:
            self._backpressure.wait_for_room(timeout, self._store.require_writable, lambda: self.last_error)

    def call(self, function: Callable[[], T]) -> T:
        """Has the thread call a function once it has done what is due, and waits: returns its result or raises."""
        result: T = self._queue.submit(Request("call", None, function))
        return result

    def start(self) -> None:
        """Starts the thread if there is none. For one thread at a time, where no interrupt can land. Raises OSError."""
        if self._thread is None:
            self._thread = start_worker(self._run, "xtree-checkpointer")

    def stop(self) -> None:
        """Ends every wait for room, and the thread once the checkpoint under way has ended."""
        self.wake_waiting()
        if self._thread is not None:
            self._queue.submit(Request("close"))
            self._thread.join()

    def wake_waiting(self) -> None:
        """Lets those who wait for room look again."""
        self._backpressure.wake()

    def stats(self) -> dict[str, Any]:
        """Counters of checkpoints, logs, backpressure and reclaim, as a dict."""
        return {
            **vars(self.counters),
            "last_checkpoint_error": None if self.last_error is None else str(self.last_error),
            "log_bytes_since_checkpoint": self.index_files.uncovered_bytes,
            "commits_since_checkpoint": self._policy.epochs,
            "logs_rotated": self.index_files.rotations,
            "logs_collected": self.index_files.logs_collected,
            **self._backpressure.stats(),
            **self.reclaimer.stats(),
        }

    # Called by the thread that has carried a group and still has the turn.

    def committed(self, epochs: int) -> None:
        """Notes commits, and wakes the thread when there is something new for it to do or to wait for."""
        policy, index_files = self._policy, self.index_files
        policy.committed(epochs)
        log_bytes = index_files.uncovered_bytes
        if (
            self._unaware
            or (index_files.spare_wanted and self._clock.now() >= self._spare_pause.until)
            or index_files.rotations != self._rotations_seen
            or (not self._reclaiming and self.reclaimer.backlog)
            or (policy.large(log_bytes) and policy.due(log_bytes))
        ):
            self._queue.wake_once()

    def _demand(self) -> None:
        self._policy.demand()
        self._queue.wake_once()

    # A checkpoint.

    def begin(self, again: bool = False) -> Copy | None:
        """The first half, between two groups; None when nothing is new, unless `again` is set.

        Commits that come later go into the next log, which is opened for the first of them.
        """
        coordinator, index_files, store = self._coordinator, self.index_files, self._store
        started = time.perf_counter()
        if not again and store.published.epoch == index_files.checkpoint_epoch:
            self._policy.began()
            return None
        self._checkpoint_lock.acquire()
        try:
            coordinator.sync_log()
            index_files.close_log()
            self._policy.began()
            epoch = store.published.epoch
            table = store.snapshot_rows(epoch, index_files.data_files.file_of_window)
            catalog = store.published.catalog.encode()
            reach("checkpoint.copied")
        except BaseException:
            self._checkpoint_lock.release()
            raise
        return Copy(epoch, table, catalog, index_files.last_log, started)

    def complete(self, copied: Copy, reason: str, hold_back: bool = True, collect: bool = True) -> None:
        """The second half, in any thread. Without `hold_back` every log that nothing needs goes: IndexFiles.keep."""
        index_files = self.index_files
        try:
            with self._coordinator.poisoning_failed_syncs():
                self._require_healthy()
                index_files.data_files.sync()
                reach("checkpoint.data_synced")
                self._require_healthy()
                entry = checkpoints.write(
                    index_files.fs,
                    index_files.directory,
                    index_files.numbers.take(),
                    index_files.manifest.uuid,
                    copied.epoch,
                    copied.table,
                    copied.catalog,
                    index_files.data_files.entries(),
                    copied.last_log,
                )
                reach("checkpoint.written")
                self._require_healthy()
                try:
                    index_files.keep(entry, self._clock.now(), hold_back, collect)
                except SyncFailedError:  # after which nothing is written or deleted any more
                    raise
                except Exception:
                    index_files.discard(checkpoint_name(entry.number))
                    raise
                reach("checkpoint.manifest_saved")
                self._require_healthy()
                index_files.publish_superblock(
                    sync=True,
                    epoch=copied.epoch,
                    durable_epoch=copied.epoch,
                    epoch_ceiling=self._coordinator.following_epoch,  # a copy that was lost may have said more
                )
                reach("checkpoint.superblock_synced")
                self._require_healthy()
                index_files.remove_unlisted()
                reach("checkpoint.garbage_removed")
        finally:
            self._checkpoint_lock.release()
        self._count(reason, time.perf_counter() - copied.started)

    def take_here(self, reason: str, collect: bool = True) -> None:
        """Takes a whole checkpoint in this thread, even when nothing is new: between two groups, or before the first.

        Waits for the one under way. Every log that nothing needs goes; with `collect` false, none.
        """
        try:
            with self._coordinator.poisoning_failed_syncs():
                copied = self.begin(again=True)
                assert copied is not None
                self.complete(copied, reason, hold_back=False, collect=collect)
        except BaseException:
            self._failed()
            raise

    def give_back_spare(self) -> None:
        """Deletes the log made ahead, if there is one, and makes none for a while. Between two groups."""
        with self._checkpoint_lock, self._coordinator.poisoning_failed_syncs():
            if self.index_files.drop_spare():
                self._spare_pause.failed(self._clock.now())
                self.index_files.save_manifest()
                self.index_files.remove_unlisted()

    def _require_healthy(self) -> None:
        """Raises StoreFailedError once the store is poisoned: nothing is written then."""
        failure = self._coordinator.failure
        if failure is not None:
            raise StoreFailedError(f"{self._store.path} failed earlier: {failure}")

    def _count(self, reason: str, seconds: float) -> None:
        counters = self.counters
        counters.checkpoints += 1
        counters.checkpoint_seconds += seconds
        counters.checkpoint_seconds_last = seconds
        counters.checkpoint_seconds_max = max(counters.checkpoint_seconds_max, seconds)
        counters.checkpoint_reason = reason
        self.last_error = None
        self._policy.succeeded()
        self.wake_waiting()

    def _failed(self) -> None:
        self.counters.checkpoint_failures += 1
        self._policy.failed()
        self.wake_waiting()

    # The thread.

    def _run(self) -> None:
        closing: list[Request] = []
        while not closing:
            requests: list[Request] = []
            try:
                requests += self._queue.take(self._seconds_to_wait())
                closing = [request for request in requests if request.what == "close"]
                asked = [request for request in requests if request.what == "checkpoint"]
                if asked:
                    self._take("request", asked)
                if not closing and self._coordinator.failure is None:
                    self._look_or_report()
                for request in requests:
                    if request.what == "call":
                        self._answer(request)
            except BaseException as error:  # no memory between two steps: others wait for this thread
                for request in requests:
                    if not request.finished and request not in closing:
                        request.finish(error=error)
        for request in closing:
            request.finish()

    def _answer(self, request: Request) -> None:
        try:
            result = request.changes()
        except BaseException as error:  # handed to the thread that asked
            request.finish(error=error)
        else:
            request.finish(result=result)

    def _look_or_report(self) -> None:
        try:
            self._look()
        except Exception as error:  # the thread must go on
            self._failed()
            self._report("work in the background", error)

    def _look(self) -> None:
        """Does what is due."""
        index_files = self.index_files
        now = self._clock.now()
        number = 0 if index_files.log is None else index_files.log.number
        if number != self._log_number:
            self._log_number, self._log_since = number, now
        index_files.log_aged = number != 0 and now >= self._log_since + index_files.config.wal_rotate_age_s
        if index_files.spare_wanted and now >= self._spare_pause.until:
            self._make_spare()
        reason = self._policy.due(index_files.uncovered_bytes)
        if reason is not None:
            self._take(reason, [])
        if index_files.rotations != self._rotations_seen:
            self._rotations_seen = index_files.rotations
            if index_files.config.gc_on_rotate:
                self._collect_logs()
        self.reclaimer.run(self._coordinator.durable_epoch)
        self._reclaiming = self.reclaimer.backlog > 0

    def _take(self, reason: str, asked: list[Request]) -> None:
        """Takes a checkpoint, for all who asked before it begins."""
        try:
            self._require_healthy()
            copied = self._coordinator.between_groups(self.begin)
            if copied is None:
                self._policy.succeeded()
                self.wake_waiting()
            else:
                self.complete(copied, reason)
        except BaseException as error:  # handed to the threads that asked
            self._failed()
            self._report("checkpoint", error)
            self._relieve(error)
            for request in asked:
                request.finish(error=error)
        else:
            for request in asked:
                request.finish()

    def _relieve(self, error: BaseException) -> None:
        """On a full disk, deletes the log made ahead to make room for the next checkpoint."""
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and self.index_files.spare is not None:
            try:
                self._coordinator.between_groups(self.give_back_spare)
            except Exception as second:
                self._report("deleting the next log", second)

    def _make_spare(self) -> None:
        """Makes the next log, with the checkpoint lock: a leader that needs room mustn't open a later one first."""
        try:
            with self._checkpoint_lock, self._coordinator.poisoning_failed_syncs():
                if self.index_files.spare_wanted:
                    self.counters.spares_made += self.index_files.make_spare()
            self._spare_pause.succeeded()
        except Exception as error:  # no commit depends on it: the open log is extended
            self.counters.spare_failures += 1
            self._spare_pause.failed(self._clock.now())
            self._report("making the next log", error)

    def _collect_logs(self) -> None:
        try:
            with self._checkpoint_lock, self._coordinator.poisoning_failed_syncs():
                self.index_files.collect_logs(self._clock.now())
        except Exception as error:  # the next checkpoint tries again
            self._report("deleting logs", error)

    def _report(self, what: str, error: BaseException) -> None:
        """Logs a failure, remembers it, and tells the user's callback."""
        log.warning("xtree: %s of %s failed: %s", what, self._store.path, error)
        self.last_error = _without_traceback(error)
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception:
                log.exception("xtree: the callback for failures of %s failed", self._store.path)

    def _seconds_to_wait(self) -> float | None:
        """Seconds until something may be due without a commit; None when nothing will be."""
        if self._coordinator.failure is not None:
            return None
        index_files, now = self.index_files, self._clock.now()
        self._unaware = True  # also for a commit that comes now
        look = self._policy.next_look(index_files.uncovered_bytes)
        self._unaware = look is None
        moments = [look]
        if index_files.spare_wanted:
            moments.append(self._spare_pause.until)
        if self._log_number and not index_files.log_aged:
            moments.append(self._log_since + index_files.config.wal_rotate_age_s)
        if self._reclaiming:
            moments.append(now + RECLAIM_INTERVAL_S)
        known = [moment for moment in moments if moment is not None]
        return max(0.0, min(known) - now) if known else None


def _without_traceback(error: BaseException) -> BaseException:
    """A copy of an error, to keep: its traceback would keep the rows of a checkpoint in memory."""
    try:
        return copy.copy(error)
    except Exception:  # one that can't be copied
        return StoreFailedError(str(error))
