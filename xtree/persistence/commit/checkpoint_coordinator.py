"""The coordinator: one thread, the leader, carries commits to disk and does what must happen between two groups.

The method that matters reads top to bottom: `write_group` (write, sync, publish, in each durability mode). Checkpoints
are taken by the checkpointer. Python handles signals in the main thread only, so nothing interrupts the leader between
two of these steps.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from xtree.errors import StoreFailedError
from xtree.persistence.base.clock import Clock
from xtree.persistence.base.crash_points import reach
from xtree.persistence.base.lock_ranks import STARTING, TURN, RankedLock, Worker
from xtree.persistence.base.outcome import outcome_of, uninterrupted
from xtree.persistence.base.threads import start_worker
from xtree.persistence.commit.checkpointer import Checkpointer, OnError
from xtree.persistence.commit.commit_queue import CommitQueue, Request, carry, finish_commits
from xtree.persistence.commit.group import Group, plan_group
from xtree.persistence.commit.index_files import IndexFiles
from xtree.persistence.files.open_directory import OpenDirectory
from xtree.persistence.files.platform_fs import SyncFailedError
from xtree.persistence.files.wal import LogWriter
from xtree.persistence.store.store import Store

log = logging.getLogger("xtree")

T = TypeVar("T")

TIDY_INTERVAL_S = 0.001  # between two looks at what commits have left, where they wait for no sync
LONGEST_QUIET_S = 0.0001  # without another commit, until a group of several threads is begun
NO_TURN = contextlib.nullcontext()


@dataclass
class Counters:
    """What the coordinator has done since the directory was opened; times in seconds."""

    commits: int = 0
    groups: int = 0
    wal_syncs: int = 0
    wal_bytes: int = 0
    commit_seconds: float = 0.0


class Coordinator:
    """Owns the index files while the store is open for writing. submit_* may be called from any thread."""

    def __init__(
        self, store: Store, index_files: IndexFiles, following_epoch: int, clock: Clock, on_error: OnError | None
    ) -> None:
        self.store = store
        self.index_files = index_files
        # Written by the holder of the turn; durable_epoch by the leader too, after a sync in the background. stats()
        # may show an old value, and so may the ceiling that a checkpoint raises, which never falls.
        self.following_epoch = following_epoch
        self.durable_epoch = store.published.epoch
        self.counters = Counters()
        # Set by the thread that sees a sync fail or finds the directory lost, before the store's status; read by all
        # that write.
        self.failure: BaseException | None = None
        self._clock = clock
        self._queue = CommitQueue(clock)
        # These two are written by the holder of the turn and the leader; the thread that carries the first commit that
        # waits for a sync wakes the leader.
        self._next_group_at = clock.now()  # when the window of the group before has passed
        self.sync_at: float | None = None  # when the frames that wait for a sync must get it; None: there are none
        self._thread: Worker | None = None
        self._start_lock = RankedLock(STARTING)
        self.turn_lock = RankedLock(TURN)  # held to write to the log, by the leader or a thread that commits alone
        self._eventual = index_files.config.durability == "eventual"
        self._carries_alone = index_files.config.durability != "strict" and not index_files.config.group_window_ms
        # Written by the holder of the turn. How many commits a group is likely to get: as many threads as were waiting
        # at the end of the last one. How long the last sync took.
        self._expected = 1
        self._sync_seconds = 0.0
        # Of the holder of the turn: what has been committed since it last tidied up, and from when it does so again.
        self._untidied_commits = self._untidied_pages = 0
        self._tidy_at = 0.0
        self.checkpointer = Checkpointer(self, clock, on_error)
        index_files.data_files.report_failed_sync = self.poison
        if isinstance(index_files.directory, OpenDirectory):
            index_files.directory.report_lost = self.poison

    # Called by users' threads.

    def submit_commit(
        self, write_set: Any, changes: dict[str, Any], largest_payload: int, on_queued: Callable[[], None] | None
    ) -> int:
        """Commits a sealed write set and returns its epoch: in this thread if that is free to, else through the queue.

        Where there is a sync to share, threads that wait share it through the leader, unless this one is alone.
        """
        request = Request("commit", write_set, changes, largest_payload, on_queued)
        if self._thread is None:
            self._ensure_leader()
        alone = self._carries_alone and (self._eventual or (self._expected <= 1 and not self._queue.waiting))
        if alone and carry(self, self._queue, request):
            return int(outcome_of(request))
        return int(self._queue.submit(request))

    def submit_checkpoint(self) -> None:
        """Has a checkpoint taken of all that is committed, and waits for it; does nothing when there is one."""
        if self.store.published.epoch != self.index_files.checkpoint_epoch:
            self._ensure_leader()
            self.checkpointer.request()

    def between_groups(self, function: Callable[[], T]) -> T:
        """Has the leader call a function between two groups, and waits: returns its result, or raises its error.

        The leader itself calls it at once. A failed sync in it poisons. Raises StoreFailedError for a store that is
        poisoned.
        """
        if threading.current_thread() is self._thread:
            return function()
        self._ensure_leader()
        result: T = self._queue.submit(Request("call", None, function))
        return result

    def submit_close(self) -> None:
        """Ends the checkpointer, has the leader finish cleanly (final checkpoint, trimmed files), and ends it."""
        uninterrupted(self._close)

    def _close(self) -> None:
        self.checkpointer.stop()
        if self._thread is None and self._finished:
            return
        self._start_leader()
        try:
            self._queue.submit(Request("close"))
        finally:
            assert self._thread is not None
            self._thread.join()

    def poison(self, error: BaseException) -> None:
        """Refuses every later write: something that must reach the disk may not have."""
        first = self.failure is None
        self.abandon(error)
        if first:
            log.error("xtree: %s failed and takes no more writes: %s", self.store.path, error)

    def abandon(self, error: BaseException) -> None:
        """Refuses every later write, without a word in the log."""
        if self.failure is None:
            self.failure = error
        self.store.poison()
        self.checkpointer.wake_waiting()

    def stats(self) -> dict[str, Any]:
        """Counters, the log and the last failure, as a dict."""
        writer = self.index_files.log
        return {
            **vars(self.counters),
            **self.checkpointer.stats(),
            "waiting": self._queue.waiting + self._queue.carried,
            "durable_epoch": self.durable_epoch,
            "checkpoint_epoch": self.index_files.checkpoint_epoch,
            "log_bytes": 0 if writer is None else writer.bytes_since_start,
            "logs": len(self.index_files.manifest.logs),
            "failure": None if self.failure is None else str(self.failure),
        }

    @property
    def _finished(self) -> bool:
        """Whether the directory is as a clean close leaves it: a checkpoint of the current epoch, and no log."""
        return not self.index_files.manifest.logs and self.store.published.epoch == self.index_files.checkpoint_epoch

    def _ensure_leader(self) -> None:
        if self._thread is None:
            uninterrupted(self._start_threads)

    def _start_threads(self) -> None:
        with self._start_lock:
            self.checkpointer.start()
        self._start_leader()

    def _start_leader(self) -> None:
        with self._start_lock:
            if self._thread is None:
                self._thread = start_worker(self._lead, "xtree-leader")

    # The leader.

    def _lead(self) -> None:
        closing = False
        while not closing:
            requests: list[Request] = []
            try:
                self._carry_out(requests)
            except BaseException as error:  # no memory between two steps: the leader must go on, others wait for it
                self.poison(error)
                self._leave(requests, error)
            closing = any(request.what == "close" for request in requests)

    def _carry_out(self, requests: list[Request]) -> None:
        """Waits for something to do, and does it; `requests` is filled with what was asked for."""
        self._gather(requests)
        if self.sync_at is not None and self._clock.now() >= self.sync_at:
            self._sync_in_background()
        if not requests and not self._queue.count:
            return
        with self.turn_lock:
            requests += self._queue.take_now()
            group = [request for request in requests if request.what == "commit"]
            if group:
                self._commit(group)
            for request in requests:
                if request.what == "call":
                    self._answer(request, request.changes)
                elif request.what == "close":
                    self._answer(request, self._finish)

    def _leave(self, requests: list[Request], error: BaseException) -> None:
        """Ends requests that nobody will carry out; a commit that was being carried out has failed."""
        for request in requests:
            if not request.finished:
                if request.what == "commit" and request.write_set.status == "queued":
                    request.write_set.end("failed")
                request.finish(error=error)

    def _gather(self, requests: list[Request]) -> None:
        """Waits until something is queued; if there is a window, takes it, and what else comes until that has begun.

        When several threads waited for the last group, it is worth waiting for them to come back, as long as one after
        the other does: they share the next sync then. Returns without any when the sync of what was written before is
        due.
        """
        if self._expected > 1:
            self._queue.gather(self._expected, min(LONGEST_QUIET_S, self._sync_seconds / 2))
        self._queue.wait(self._seconds_until(self.sync_at))
        if self.index_files.config.group_window_ms and not self._eventual:
            requests += self._queue.take_now()
            while requests and all(request.what == "commit" for request in requests):
                wait = self._seconds_until(self._next_group_at)
                if not wait:
                    self._next_group_at = self._clock.now() + self.index_files.config.group_window_ms / 1000
                    break
                requests += self._queue.take(wait)

    def _seconds_until(self, moment: float | None) -> float | None:
        return None if moment is None else max(0.0, moment - self._clock.now())

    def _answer(self, request: Request, action: Callable[[], Any]) -> None:
        try:
            if self.failure is not None:
                raise StoreFailedError(f"{self.store.path} failed earlier: {self.failure}")
            with self.poisoning_failed_syncs():
                result = action()
        except BaseException as error:  # handed to the thread that asked
            request.finish(error=error)
        else:
            request.finish(result=result)

    def _commit(self, requests: list[Request]) -> None:
        """Carries commits in the order of the queue, together if that works, else one by one."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.store.in_flight())  # as long as there are pointers to pages
                group = self._prepare(requests)
            except BaseException as error:  # nothing was appended: what can't go together may go alone
                if len(requests) > 1 and self.failure is None:
                    for request in requests:
                        self._commit([request])
                    return
                for request in requests:
                    request.write_set.end("aborted")
                    request.finish(error=error if len(requests) == 1 else _copy_of(error))
                return
            try:
                self.write_group(group)
            except BaseException as error:  # past the point of no return: the outcome is on disk, and unknown
                if not self.has_published(group):
                    self.fail(group, error)
                    return
            self.finish_group(group)

    def plan(self, requests: list[Request]) -> Group | None:
        """A group that a user's thread may write; None when there is something for the leader to do."""
        files = self.index_files
        writer = files.log
        if (
            writer is None
            or self.failure is not None
            or files.rotation_due
            or files.data_files.manifest_needed
            or self.following_epoch + len(requests) > files.superblock.value.epoch_ceiling
        ):
            return None
        for request in requests:
            request.write_set.require_foundation()
        files.require_own()
        windows = files.data_files.file_of_window
        group = plan_group(self.store, requests, writer, self.following_epoch, self.durable_epoch, windows)
        if group.frame.end_offset > writer.ground_end:
            return None
        reach("commit.prepared")
        return group

    def _prepare(self, requests: list[Request]) -> Group:
        """Does everything that may fail cleanly: epochs, files, room in the log, the frame's parts."""
        if self.failure is not None:
            raise StoreFailedError(f"{self.store.path} failed earlier: {self.failure}")
        for request in requests:
            request.write_set.require_foundation()
        index_files = self.index_files
        index_files.require_own()
        with self.poisoning_failed_syncs():
            index_files.raise_ceiling(self.following_epoch + len(requests) - 1)
            if index_files.data_files.manifest_needed:
                index_files.save_manifest()
            try:
                group = self._with_room(requests)
            except SyncFailedError:
                raise
            except OSError as error:
                if error.errno != errno.ENOSPC or not index_files.manifest.logs:
                    raise
                self._make_room()
                group = self._with_room(requests)
        reach("commit.prepared")
        return group

    def _with_room(self, requests: list[Request]) -> Group:
        """Plans a group, and makes room for it in the log; if that takes the next log, it is planned anew."""
        writer = self._log_for(0)
        group = self._group_of(requests, writer)
        chosen = self._log_for(len(group.frame))
        if chosen is not writer:
            group = self._group_of(requests, chosen)
        chosen.reserve(len(group.frame))
        return group

    def _group_of(self, requests: list[Request], writer: LogWriter) -> Group:
        files = self.index_files.data_files.file_of_window
        return plan_group(self.store, requests, writer, self.following_epoch, self.durable_epoch, files)

    def _log_for(self, size: int) -> LogWriter:
        """The log for a frame of so many bytes; if it is a new one, what the log before holds is on the disk."""
        before = self.index_files.log
        writer = self.index_files.log_for(size, self.durable_epoch)
        if before is not None and writer is not before:
            self.durable_epoch = max(self.durable_epoch, before.last_epoch)
        return writer

    def _make_room(self) -> None:
        """Makes room for the log on a full disk, by checkpoints, which let older logs go."""
        self.checkpointer.give_back_spare()
        for _ in range(self.index_files.config.checkpoints_kept):
            self.checkpointer.take_here("full disk")

    def write_group(self, group: Group) -> None:
        """Writes, syncs, publishes. From the first byte appended there is no way back.

        Pages without a payload in the frame have been flushed before: all pages in strict, large ones in balanced. This
        may be begun again after an interrupt: every step then does again what it did, or nothing.
        """
        mode = self.index_files.config.durability
        writer = self.index_files.log
        assert writer is not None
        last_epoch = group.last_epoch
        self.following_epoch = last_epoch + 1
        reach("commit.before_append")
        writer.write(group.frame)
        reach("commit.appended")
        if mode != "eventual":
            before = time.perf_counter()
            writer.sync()
            self._sync_seconds = time.perf_counter() - before
            reach("commit.synced")
        if mode == "strict":
            self.index_files.publish_superblock(sync=True, epoch=last_epoch, durable_epoch=last_epoch)
            reach("commit.superblock_synced")
        if mode != "eventual":
            self.durable_epoch = last_epoch
        elif self.sync_at is None:
            self.sync_at = self._clock.now() + self.index_files.config.sync_interval_ms / 1000
        if group.write_sets[0].status == "queued":
            self.store.publish(group.write_sets, group.first_epoch, group.catalog)
        reach("commit.published")

    def has_published(self, group: Group) -> bool:
        """Whether a group is visible: whatever is raised after that, it is committed."""
        return bool(self.store.published.epoch >= group.last_epoch)

    def finish_group(self, group: Group) -> None:
        """After the publication, lets the callers go on and tidies up what the commit has left."""
        counters = self.counters
        counters.commits += len(group.requests)
        counters.groups += 1
        counters.wal_bytes += len(group.frame)
        counters.wal_syncs += self.index_files.config.durability != "eventual"
        counters.commit_seconds += time.perf_counter() - group.started
        if not self._eventual:
            self._expected = self._queue.waiting + self._queue.carried
        finish_commits(group.requests, group.first_epoch)
        self._untidied_commits += len(group.requests)
        self._untidied_pages += group.pages
        if group.started >= self._tidy_at:
            self._tidy_up()

    def fail(self, group: Group, error: BaseException) -> None:
        """Gives up after the point of no return: what is on the disk isn't known, and nothing more is written."""
        self.poison(error)
        for request in group.requests:
            if request.write_set.status == "queued":
                request.write_set.end("failed")
                request.finish(error=error if len(group.requests) == 1 else _copy_of(error))

    def _sync_in_background(self) -> None:
        """In eventual mode, puts what commits have written on the disk; then the superblock says so.

        The sync doesn't take the turn: other threads go on committing. Only the leader changes the log they append to.
        """
        if self.failure is not None:
            self.sync_at = None
            return
        try:
            self.sync_log(self.turn_lock)
            self.index_files.publish_superblock(sync=False, epoch=self.durable_epoch, durable_epoch=self.durable_epoch)
            reach("sync.superblock_written")
            with self.turn_lock:
                self._tidy_up()
        except OSError as error:
            if isinstance(error, SyncFailedError):  # nobody waits for this sync: the next commit says so
                self.poison(error)
            else:  # of the superblock, which only follows: it is written again after the next sync
                log.warning("xtree: writing the superblock of %s failed: %s", self.store.path, error)
        except Exception as error:
            self.poison(error)

    def sync_log(self, turn: contextlib.AbstractContextManager[Any] = NO_TURN) -> None:
        """Returns when every commit so far is on the disk. turn: the lock to take, unless it is held already."""
        with turn:
            self.sync_at = None
            writer = self.index_files.log
            if writer is None or writer.synced:
                return
            last_epoch, end = writer.last_epoch, writer.begin_sync()
        reach("sync.before_sync")
        writer.finish_sync(end)
        reach("sync.synced")
        self.counters.wal_syncs += 1
        self.durable_epoch = last_epoch

    def _tidy_up(self) -> None:
        """Behind commits, frees pages that nobody sees any more, and tells the checkpointer. With the turn.

        After every group; where no group waits for a sync after most of them, and once more at the next sync.
        """
        commits, self._untidied_commits = self._untidied_commits, 0
        pages, self._untidied_pages = self._untidied_pages, 0
        if self._eventual:
            self._tidy_at = time.perf_counter() + TIDY_INTERVAL_S
        try:
            self.checkpointer.reclaimer.committed(pages, self.durable_epoch)
            self.checkpointer.committed(commits)  # it wakes the thread for what couldn't be freed
        except Exception:  # no commit depends on it
            log.exception("xtree: tidying up behind a commit of %s failed", self.store.path)

    # The beginning and the end.

    def end_recovery(self) -> None:
        """Ends an unclean open: puts what was recovered on the disk, so that no log tail is trusted twice.

        Log and superblock are synced first: what made the last frames of a killed process commits may be in the cache
        only, and a checkpoint and the manifest are about to say that they are commits, and where they end.

        The epochs of the gap count as passed over from here on, even if a clean close comes before the next commit. The
        logs stay until the superblock says so: without any, the next open would take this one's end for a clean close.
        """
        with self.poisoning_failed_syncs():
            self.index_files.sync_last_log()
            reach("recovery.log_synced")
            self.index_files.superblock.sync()
        self.checkpointer.take_here("recovery", collect=False)
        with self.poisoning_failed_syncs():
            self.index_files.publish_superblock(sync=True, epoch=self.following_epoch - 1)

    def _finish(self) -> None:
        """Closes cleanly: nothing is left to replay, and the files end where their last page ends."""
        index_files, store = self.index_files, self.store
        had_spare = index_files.drop_spare()
        if self._finished and not had_spare:
            return
        with self.poisoning_failed_syncs():
            for _ in range(index_files.config.checkpoints_kept):  # of one epoch: the oldest kept must cover every log
                if not self._finished:
                    self.checkpointer.take_here("close")
            store.make_ready()  # the allocator knows where each file's last page ends
            trimmed = index_files.data_files.trim(store.allocator.top_bytes)
            reach("close.trimmed")
            index_files.save_manifest()
            reach("close.manifest_saved")
            if had_spare:
                index_files.remove_unlisted()
            store.windows.unmap_all()
            index_files.data_files.cut(trimmed)

    @contextlib.contextmanager
    def poisoning_failed_syncs(self) -> Iterator[None]:
        """A block in which a failed sync poisons the store; any other failure leaves it as it was."""
        try:
            yield
        except SyncFailedError as error:
            self.poison(error)
            raise


def _copy_of(error: BaseException) -> BaseException:
    """A separate exception for one of several threads that one error concerns."""
    try:
        twin = copy.copy(error)
    except Exception:  # one that can't be copied
        twin = StoreFailedError(str(error))
    twin.__cause__ = error
    return twin
