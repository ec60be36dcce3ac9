"""The coordinator: one thread, the leader, carries every commit and every checkpoint to disk.

The two methods that matter read top to bottom: `_write_group` (write, sync, publish, in each durability mode)
and `checkpoint` (close the log, copy, sync data, write the checkpoint, manifest, superblock, collect garbage). Python
handles signals in the main thread only, so nothing interrupts the leader between two of these steps.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xtree.errors import StoreFailedError
from xtree.persistence import checkpoint as checkpoints
from xtree.persistence.catalog import Catalog, encode_changes
from xtree.persistence.clock import Clock
from xtree.persistence.commit_queue import CommitQueue, Request, uninterrupted
from xtree.persistence.crash_points import reach
from xtree.persistence.frame import frame_bytes
from xtree.persistence.journal import Journal
from xtree.persistence.platform_fs import SyncFailedError

if TYPE_CHECKING:
    from xtree.persistence.durable_store import DurableStore

log = logging.getLogger("xtree")

RECLAIM_LIMIT = 4096  # pages freed after one group at most, beyond twice what it retired


@dataclass
class Group:
    """Commits that share one frame, one append and one sync."""

    requests: list[Request]
    epochs: list[int]
    catalog: Catalog
    deltas: list[bytearray] = field(default_factory=list)
    delta_count: int = 0
    payloads: list[memoryview] = field(default_factory=list)
    changes: bytes = b""
    change_count: int = 0


@dataclass
class Counters:
    """What the coordinator has done since the directory was opened; times in seconds."""

    commits: int = 0
    groups: int = 0
    wal_syncs: int = 0
    wal_bytes: int = 0
    commit_seconds: float = 0.0
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint_failures: int = 0


class Coordinator:
    """Owns the journal while the store is open for writing. submit_* may be called from any thread."""

    def __init__(self, store: DurableStore, journal: Journal, following_epoch: int, clock: Clock) -> None:
        self.store = store
        self.journal = journal
        self.following_epoch = following_epoch
        self.durable_epoch = store.published.epoch
        self.counters = Counters()
        self.failure: BaseException | None = None
        self._clock = clock
        self._queue = CommitQueue(clock)
        self._next_group_at = clock.now()  # when the window of the group before has passed
        self._sync_at: float | None = None  # when the frames that wait for a sync must get it; None: there are none
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()
        journal.data_files.report_failed_sync = self.poison

    # Called by users' threads.

    def submit_commit(self, write_set: Any, changes: dict[str, Any], largest_payload: int) -> int:
        """Queues a sealed write set and waits for its outcome; returns its epoch."""
        self._ensure_leader()
        return self._queue.submit(Request("commit", write_set, (changes, largest_payload)))

    def submit_checkpoint(self) -> None:
        """Has the leader take a checkpoint and waits for it."""
        self._ensure_leader()
        self._queue.submit(Request("checkpoint"))

    def submit_close(self) -> None:
        """Has the leader finish cleanly (final checkpoint, trimmed files), and ends it."""
        if self._thread is None and self._finished:
            return
        self._ensure_leader()
        try:
            self._queue.submit(Request("close"))
        finally:
            assert self._thread is not None
            self._thread.join()

    def leads_here(self) -> bool:
        """Whether the calling thread is the leader."""
        return threading.current_thread() is self._thread

    def poison(self, error: BaseException) -> None:
        """Refuses every later write: something that must reach the disk may not have."""
        if self.failure is None:
            self.failure = error
            log.error("xtree: %s failed and takes no more writes: %s", self.store.path, error)
        self.store._poison()

    def stats(self) -> dict[str, Any]:
        """Counters, the log and the last failure, as a dict."""
        writer = self.journal.log
        return {
            **vars(self.counters),
            "waiting": self._queue.waiting,
            "durable_epoch": self.durable_epoch,
            "checkpoint_epoch": self.journal.checkpoint_epoch,
            "log_bytes": 0 if writer is None else writer.bytes_since_start,
            "logs": len(self.journal.manifest.logs),
            "failure": None if self.failure is None else str(self.failure),
        }

    @property
    def _finished(self) -> bool:
        """Whether the directory is as a clean close leaves it: a checkpoint of the current epoch, and no log."""
        return not self.journal.manifest.logs and self.store.published.epoch == self.journal.checkpoint_epoch

    def _ensure_leader(self) -> None:
        if self._thread is None:
            uninterrupted(self._start_leader)

    def _start_leader(self) -> None:
        with self._start:
            if self._thread is None:
                thread = threading.Thread(target=self._lead, name="xtree-leader", daemon=True)
                thread.start()
                self._thread = thread

    # The leader.

    def _lead(self) -> None:
        closing = False
        while not closing:
            requests = self._gather()
            group = [request for request in requests if request.what == "commit"]
            if group:
                with self.store.in_flight():  # from the first pointer to a page until the last byte of it is written
                    self._commit(group)
            if self._sync_at is not None and self._clock.now() >= self._sync_at:
                self._sync_in_background()
            for request in requests:
                if request.what == "checkpoint":
                    self._answer(request, self.checkpoint)
                elif request.what == "close":
                    closing = True
                    self._answer(request, self._finish)

    def _gather(self) -> list[Request]:
        """What is queued, as soon as there is something, but commits alone not before their window has begun.

        Comes back with nothing when the sync of what was written before is due.
        """
        requests = self._queue.take(self._seconds_until(self._sync_at))
        if self.journal.config.group_window_ms and self.journal.config.durability != "eventual":
            while requests and all(request.what == "commit" for request in requests):
                wait = self._seconds_until(self._next_group_at)
                if not wait:
                    self._next_group_at = self._clock.now() + self.journal.config.group_window_ms / 1000
                    break
                requests += self._queue.take(wait)
        return requests

    def _seconds_until(self, moment: float | None) -> float | None:
        return None if moment is None else max(0.0, moment - self._clock.now())

    def _answer(self, request: Request, action: Callable[[], None]) -> None:
        try:
            if self.failure is not None:
                raise StoreFailedError(f"{self.store.path} failed earlier: {self.failure}")
            action()
        except BaseException as error:  # handed to the thread that asked
            request.finish(error=error)
        else:
            request.finish()

    def _commit(self, requests: list[Request]) -> None:
        started = time.perf_counter()
        try:
            if self.failure is not None:
                raise StoreFailedError(f"{self.store.path} failed earlier: {self.failure}")
            with self.poisoning_failed_syncs():
                group = self._prepare(requests)
        except BaseException as error:  # nothing was appended: the whole group is undone
            for request in requests:
                request.write_set._end("aborted")
                request.finish(error=error)
            return
        try:
            self._write_group(group)
        except BaseException as error:  # past the point of no return: the outcome is on disk, and unknown
            self.poison(error)
            for request in requests:
                request.write_set._end("failed")
                request.finish(error=error)
            return
        self.counters.commits += len(requests)
        self.counters.groups += 1
        self.counters.commit_seconds += time.perf_counter() - started
        for request, epoch in zip(requests, group.epochs, strict=True):
            request.finish(result=epoch)
        self._tidy_up(group)

    def _prepare(self, requests: list[Request]) -> Group:
        """Everything that may fail cleanly: epochs, files, room in the log, the frame's parts."""
        journal, store = self.journal, self.store
        epochs = list(range(self.following_epoch, self.following_epoch + len(requests)))
        journal.raise_ceiling(epochs[-1])
        merged: dict[str, Any] = {}
        for request in requests:
            merged.update(request.changes[0])
        group = Group(requests, epochs, store.published.catalog.with_changes(merged))
        group.changes, group.change_count = encode_changes(merged), len(merged)
        payload_bytes = 0
        for request, epoch in zip(requests, epochs, strict=True):
            deltas, count, payloads, size = store.deltas_of(request.write_set, epoch, request.changes[1], payload_bytes)
            group.deltas.append(deltas)
            group.delta_count += count
            group.payloads.extend(payloads)
            payload_bytes += size
        if journal.data_files.manifest_needed:
            journal.save_manifest()
        self._make_room(frame_bytes(group.delta_count, len(group.changes), payload_bytes))
        reach("commit.prepared")
        return group

    def _make_room(self, size: int) -> None:
        """Room in the log for a frame; on a full disk it comes from checkpoints, which let the older logs go."""
        journal = self.journal
        try:
            journal.open_log(self.durable_epoch).reserve(size)
        except SyncFailedError:
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC or not journal.manifest.logs:
                raise
            for _ in range(journal.config.checkpoints_kept):
                self._take_checkpoint()
            journal.open_log(self.durable_epoch).reserve(size)

    def _write_group(self, group: Group) -> None:
        """Write, sync, publish. From the first byte appended there is no way back.

        What the frame carries no payload of has been flushed before: everything in strict, large pages in balanced.
        """
        mode = self.journal.config.durability
        writer = self.journal.log
        assert writer is not None
        last_epoch = group.epochs[-1]
        self.following_epoch = last_epoch + 1
        reach("commit.before_append")
        size = writer.append(
            group.epochs[0],
            group.epochs[-1],
            self.durable_epoch,
            group.deltas,
            group.changes,
            group.change_count,
            group.payloads,
            group.delta_count,
        )
        reach("commit.appended")
        if mode != "eventual":
            writer.sync()
            reach("commit.synced")
            self.counters.wal_syncs += 1
        if mode == "strict":
            self.journal.publish_superblock(sync=True, epoch=last_epoch, durable_epoch=last_epoch)
            reach("commit.superblock_synced")
        if mode != "eventual":
            self.durable_epoch = last_epoch
        elif self._sync_at is None:
            self._sync_at = self._clock.now() + self.journal.config.sync_interval_ms / 1000
        committed = [(request.write_set, epoch) for request, epoch in zip(group.requests, group.epochs, strict=True)]
        self.store._publish(committed, group.catalog)
        reach("commit.published")
        self.counters.wal_bytes += size

    def _sync_in_background(self) -> None:
        """Eventual: what commits have written gets to the disk, and then the superblock says so."""
        self._sync_at = None
        if self.failure is not None:
            return
        try:
            self._sync_log()
            self.journal.publish_superblock(sync=False, epoch=self.durable_epoch, durable_epoch=self.durable_epoch)
            reach("sync.superblock_written")
            self.store.reclaim(self.durable_epoch, RECLAIM_LIMIT)
        except Exception as error:  # nobody waits for it: the next commit says so
            self.poison(error)

    def _sync_log(self) -> None:
        """Every commit so far is on the disk when this returns."""
        self._sync_at = None
        writer = self.journal.log
        if writer is not None and not writer.synced:
            reach("sync.before_sync")
            writer.sync()
            reach("sync.synced")
            self.counters.wal_syncs += 1
            self.durable_epoch = writer.last_epoch

    def _tidy_up(self, group: Group) -> None:
        """After the callers have gone on: reclaim, and a checkpoint when the log has grown long."""
        try:
            self.store.reclaim(self.durable_epoch, RECLAIM_LIMIT + 2 * group.delta_count)
            writer = self.journal.log
            if writer is not None and writer.bytes_since_start >= self.journal.config.checkpoint_log_bytes:
                self.checkpoint()
        except Exception as error:  # no commit depends on it; the log keeps growing until a checkpoint succeeds
            self.counters.checkpoint_failures += 1
            log.warning("xtree: checkpoint of %s failed: %s", self.store.path, error)

    # Checkpoints.

    def end_recovery(self) -> None:
        """Ends an unclean open: what was recovered is on the disk, and no log tail is trusted twice."""
        with self.poisoning_failed_syncs():
            self._take_checkpoint()

    def checkpoint(self) -> None:
        """Makes the current epoch the one that recovery starts from. Nothing new since the last one: nothing to do."""
        if self.store.published.epoch != self.journal.checkpoint_epoch:
            with self.poisoning_failed_syncs():
                self._take_checkpoint()

    def _take_checkpoint(self) -> None:
        started = time.perf_counter()
        journal, store = self.journal, self.store
        self._sync_log()
        journal.close_log()
        epoch = store.published.epoch
        rows = store._snapshot_rows(epoch, journal.data_files.file_of_window)
        catalog = store.published.catalog.encode()
        reach("checkpoint.copied")
        journal.data_files.sync()
        reach("checkpoint.data_synced")
        entry = checkpoints.write(
            journal.fs,
            journal.directory,
            journal.numbers.take(),
            journal.manifest.uuid,
            epoch,
            rows,
            catalog,
            journal.data_files.entries(),
            journal.last_log,
        )
        reach("checkpoint.written")
        journal.keep(entry)
        reach("checkpoint.manifest_saved")
        journal.publish_superblock(sync=True, epoch=epoch, durable_epoch=epoch)
        reach("checkpoint.superblock_synced")
        journal.remove_unlisted()
        reach("checkpoint.garbage_removed")
        self.counters.checkpoints += 1
        self.counters.checkpoint_seconds += time.perf_counter() - started

    def _finish(self) -> None:
        """A clean close: nothing is left to replay, and the files end where their last page ends."""
        journal, store = self.journal, self.store
        if self._finished:
            return
        with self.poisoning_failed_syncs():
            for _ in range(journal.config.checkpoints_kept):  # one epoch, until the oldest one kept covers every log
                if not self._finished:
                    self._take_checkpoint()
            store._before_write()  # the allocator knows where each file's last page ends
            trimmed = journal.data_files.trim(store.allocator.top_bytes)
            reach("close.trimmed")
            journal.save_manifest()
            reach("close.manifest_saved")
            store.windows.unmap_all()
            journal.data_files.cut(trimmed)

    @contextlib.contextmanager
    def poisoning_failed_syncs(self) -> Iterator[None]:
        """A block in which a failed sync poisons the store; any other failure leaves it as it was."""
        try:
            yield
        except SyncFailedError as error:
            self.poison(error)
            raise
