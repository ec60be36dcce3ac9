"""MemoryStore: a store without files, whose pages are in anonymous memory."""

from libc.stdint cimport uint64_t

from xtree.persistence.base.lock_ranks cimport TURN, RankedLock
from xtree.persistence.pages.mvcc cimport Epochs
from xtree.persistence.pages.object_table cimport ObjectTable
from xtree.persistence.store.store cimport Store
from xtree.persistence.store.write_set cimport WriteSet

from xtree.persistence.store.catalog import Catalog
from xtree.persistence.store.fork_hooks import watch_forks
from xtree.persistence.store.memory_growth import MemoryGrowth
from xtree.persistence.pages.mmap_windows import Windows
from xtree.persistence.pages.segment_allocator import SegmentAllocator


class MemoryStore(Store):
    """A store that is gone with the object. table: an empty ObjectTable to use; None makes one."""

    def __init__(self, table=None):
        windows = Windows()
        allocator = SegmentAllocator(MemoryGrowth(windows))
        self._set_up(ObjectTable() if table is None else table, Epochs(), windows, allocator, 0, Catalog(), None, False)
        self._commit_lock = RankedLock(TURN)
        watch_forks(self)

    def commit(self, WriteSet write_set, dict changes, on_queued):
        cdef RankedLock lock = self._commit_lock
        lock.take(True, -1.0)
        try:
            return publish_in_memory(self, write_set, changes)
        finally:
            lock.give_back()

    def stop_commits(self, uint64_t until_ns):
        cdef RankedLock lock = self._commit_lock
        return lock.take_silently(until_ns)

    def let_commit(self):
        cdef RankedLock lock = self._commit_lock
        lock.give_back()


cdef uint64_t publish_in_memory(Store store, WriteSet write_set, dict changes) except 0:
    """A commit without files. Compiled code, so that no signal is handled between its steps."""
    cdef uint64_t epoch = store.published.epoch + 1
    cdef Py_ssize_t pages = write_set.made_count + write_set.retired_count
    catalog = store.published.catalog.with_changes(changes)
    write_set.queue()
    store.publish([write_set], epoch, catalog)
    store.reclaim(limit=2 * pages + 64)
    return epoch
