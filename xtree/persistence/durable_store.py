"""The durable store: a Store whose pages live in data files and whose commits go through the coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from xtree.errors import StoreFailedError
from xtree.persistence.base.clock import Clock
from xtree.persistence.base.config import PAGE_BYTES
from xtree.persistence.base.lock_ranks import REBUILDING, RankedLock, require_nothing_held
from xtree.persistence.base.metrics import Latency
from xtree.persistence.base.outcome import uninterrupted
from xtree.persistence.commit.checkpoint_coordinator import Coordinator
from xtree.persistence.commit.checkpointer import OnError
from xtree.persistence.commit.delta import touched_windows
from xtree.persistence.creation import Creation
from xtree.persistence.files.file_header import HEADER_BYTES
from xtree.persistence.files.lock_file import Lock
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.pages.mvcc import Epochs
from xtree.persistence.pages.recycler import Recycler
from xtree.persistence.pages.segment_allocator import SegmentAllocator
from xtree.persistence.recovery.file_check import Flaw, file_flaws
from xtree.persistence.recovery.recovery import Recovered
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.fork_hooks import watch_forks
from xtree.persistence.store.store import Store
from xtree.persistence.store.write_set import WriteSet


class DurableStore(Store):
    """The store of one directory. Made by persistence.opening.open_store, which holds the directory's lock."""

    def __init__(
        self, recovered: Recovered, lock: Lock, read_only: bool, clock: Clock, on_error: OnError | None = None
    ) -> None:
        index_files = recovered.index_files
        self.recovery = recovered.report
        self.creation: Creation | None = None  # what the open has made
        self.when_closed: Callable[[], None] | None = None  # until it is called others find the store
        self._discarded = False
        self.index_files = index_files
        self.directory_lock: Lock | None = lock
        self._latency = Latency()
        # The first write sets it under `_rebuild_lock`, once the allocator is complete; read with the GIL.
        self._allocator_ready = False
        self._rebuild_lock = RankedLock(REBUILDING)
        self._set_up(
            recovered.table,
            Epochs(slow_reader_s=index_files.config.slow_reader_s),
            index_files.data_files.windows,
            SegmentAllocator(index_files.data_files),
            recovered.epoch,
            recovered.catalog,
            index_files.directory,
            read_only,
        )
        self.syncs_commits = index_files.config.durability != "eventual"
        watch_forks(self)
        self._recycler = Recycler(self.windows, self.flights)
        self.windows.set_recycler(self._recycler)
        self._first_epoch = recovered.following_epoch  # after a gap, if the end was unclean
        self._coordinator = Coordinator(self, index_files, recovered.following_epoch, clock, on_error)
        if recovered.needs_checkpoint and not read_only:
            self._coordinator.end_recovery()
            self.recovery.checkpointed = True

    @property
    def uuid(self) -> bytes:
        """The 16 bytes that name this index in each of its files."""
        return self.index_files.manifest.uuid

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the lock file that is held; None where there is none."""
        held = None if self.directory_lock is None else self.directory_lock.directory
        return None if held is None else held.identity

    def is_in(self, path: str) -> bool:
        """Whether the directory at a path is this one, however it is reached."""
        held = None if self.directory_lock is None else self.directory_lock.directory
        return held is not None and held.is_at(path)

    def require_own(self) -> None:
        """Raises DirectoryLostError when its path doesn't lead to the directory any more, OSError."""
        self.index_files.fs.require_own(self.index_files.directory)

    @property
    def fs(self) -> FileSystem:
        """The file system that its files are in."""
        return self.index_files.fs

    @property
    def config(self) -> Any:
        """The Config in force: the one given at the open, with the fields that were fixed at creation."""
        return self.index_files.config

    def checkpoint(self) -> None:
        """Makes the current epoch the one that recovery starts from, so that no log has to be replayed.

        Raises OSError, ClosedError, ReadOnlyError, StoreFailedError; TransactionError where it would wait for itself.
        """
        require_nothing_held("a checkpoint")
        with self.call():
            self.require_writable()
            self._coordinator.submit_checkpoint()

    def discard(self) -> None:
        """Closes the store; removes the index again if this open has made it. Called when filling it has failed."""
        if self.creation is not None and self.creation.begun:
            self._coordinator.abandon(StoreFailedError("the index wasn't filled"))
            self._discarded = True
        self.close()

    def wait_for_room(self, timeout: float | None = None) -> None:
        """Waits while more log than Config.log_limit_bytes is in no checkpoint. Called before a write and any lock.
        timeout: seconds, None for Config.backpressure_timeout_s. Raises TimeoutError, ClosedError, StoreFailedError.
        """
        checkpointer = self._coordinator.checkpointer
        if self.index_files.uncovered_bytes >= checkpointer.crowded_from:
            checkpointer.wait_for_room(timeout)

    def check(self) -> None:
        """Verifies table, allocator, their agreement, every file except unused slots, and every live page's CRC.

        Raises CorruptionError, FormatVersionError, OSError.
        """
        with self.read() as published:
            super().check()
            self._check_places()
            self.index_files.data_files.verify_headers()
            for flaw in self.flaws_of_files():
                raise flaw.error
            self.verify_pages(published.epoch)

    def flaws_of_files(self) -> Iterator[Flaw]:
        """What is wrong with superblock, manifest, checkpoints and logs (persistence.recovery.file_check)."""
        return file_flaws(self.index_files, after_crash=not self.recovery.clean)

    def stats(self) -> dict[str, Any]:
        """Figures of the whole substrate, as nested dicts. docs/metrics.md explains them."""
        common: dict[str, Any] = super().stats()
        coordinator = self._coordinator.stats()
        durable_epoch = max(coordinator["durable_epoch"], self._first_epoch - 1)
        return {
            **common,
            "durability": self.config.durability,
            "durable_lag": max(0, common["epoch"] - durable_epoch),
            "commit_latency": self._latency.as_dict(),
            "coordinator": coordinator,
            "recovery": self.recovery.as_dict(),
            "data_files": self.index_files.data_files.stats(),
        }

    # What Store asks for.

    def make_ready(self) -> None:
        if not self._allocator_ready:
            with self._rebuild_lock:
                if not self._allocator_ready:
                    self.index_files.remove_leftovers()
                    self._use_allocator(self._rebuild_allocator())
                    self._allocator_ready = True

    def _check_places(self) -> None:
        """Verifies, before the first write, that no two live rows overlap and that each has a slot of its class."""
        with self._rebuild_lock:
            if not self._allocator_ready:
                self._rebuild_allocator()

    def _rebuild_allocator(self) -> SegmentAllocator:
        """An allocator of the files there are, with the slots of the live rows in use. Raises CorruptionError."""
        allocator = SegmentAllocator(self.index_files.data_files)
        for window, size_class, usable, limit in self.index_files.data_files.attached():
            allocator.attach(window, size_class, HEADER_BYTES, max(usable, HEADER_BYTES), limit)
        self._occupy_live_slots(allocator)
        return allocator

    def commit(
        self, write_set: WriteSet, changes: dict[str, CatalogEntry | None], on_queued: Callable[[], None] | None
    ) -> int:
        """Flushes what the log won't carry, in the caller's thread, and queues the rest."""
        started = time.perf_counter()
        data_files = self.index_files.data_files
        write_set.seal()
        largest_payload = self._largest_payload(write_set.bytes_made)
        touched, to_flush = touched_windows(write_set, largest_payload)
        for window in touched:
            if data_files.mark_dirty(window):
                to_flush |= data_files.overdue()
        if to_flush:
            with self._coordinator.poisoning_failed_syncs():
                uninterrupted(data_files.sync, to_flush)
        epoch = self._coordinator.submit_commit(write_set, changes, largest_payload, on_queued)
        self._latency.observe(time.perf_counter() - started)
        return epoch

    def _largest_payload(self, bytes_made: int) -> int:
        """The size of the largest page that the log carries for a transaction with so many bytes of new pages."""
        config = self.index_files.config
        if config.durability == "strict" or bytes_made > config.bulk_payload_limit:
            return 0
        return PAGE_BYTES[-1] if config.durability == "eventual" else config.max_payload_in_wal

    def _failure(self) -> str:
        return str(self._coordinator.failure)

    def _file_name(self, window: int) -> str:
        return self.index_files.data_files.path_of(window)

    def _check_slots(self) -> None:
        if self._allocator_ready:
            super()._check_slots()

    def _shut_down(self, failed: bool) -> None:
        try:
            if not failed and not self.read_only:
                self._coordinator.submit_close()
            elif failed:
                self._abandon_leader()
        finally:
            self.windows.unmap_all()
            self.index_files.close()
            try:
                if self._discarded and self.creation is not None:
                    self.creation.undo()
                if self.directory_lock is not None:
                    self.directory_lock.release()
            finally:
                if self.when_closed is not None:  # others wait for the end of this close until then
                    self.when_closed()
                    self.when_closed = None

    def _abandon_leader(self) -> None:
        """Ends the leader of a poisoned store, which writes nothing any more."""
        try:
            self._coordinator.submit_close()
        except StoreFailedError as error:
            assert self._coordinator.failure is not None, error
