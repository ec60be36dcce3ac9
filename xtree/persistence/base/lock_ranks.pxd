"""The order in which threads wait for each other, so that none waits for itself and no two wait for each other.

Everything that a thread can hold while others wait for it has a rank. A thread waits only for what ranks above
everything that it holds. Garbage collection and signal handlers run anybody's Python code in the middle of ours. That
code may ask for locks out of order, or for the very lock that its thread holds. Then the lock is only tried, and if it
is taken, the call raises TransactionError. Writes, checkpoints, backups and opening an index wait for more than can be
known beforehand, so they are refused while their thread holds anything at all (`require_free`).

    rank           held
    IN_THREAD      by a thread that others wait for, for all its life: the leader, the checkpointer, the recycler,
                   helpers; by whoever closes a store
    STARTING       while those threads are started: Coordinator._start_lock
    TURN           by the thread that writes to the log and publishes: the leader, or one that carries a commit of its
                   own; Coordinator.turn_lock, MemoryStore._commit_lock
    REBUILDING     while the allocator is rebuilt, or checked before it is: DurableStore._rebuild_lock
    MANIFEST       while the manifest is changed, saved or verified: IndexFiles._manifest_lock
    SUPERBLOCK     while the superblock is written and synced: SuperblockFile._lock
    SYNCING        while a data file is synced: DataFile.sync_lock
    STORE_LOCK     while slots and rows are given out, published, given back or copied: Store.lock
    FILE_TABLE     for the tables of data files: DataFiles._lock
    NUMBERS        for the next file number: FileNumbers._lock
    ROOM           while a thread looks for room in the log; not while it waits for some: Backpressure._changed
    OPEN_FILES     for the lists of open files: OpenFiles._lock
    POSITION       between a seek and the read or write after it, where the system has no pread: File._position_lock

Writer locks have no rank: their rule is in write_scope.pyx.
"""

cimport cython
from libc.stdint cimport uint64_t

cpdef enum:
    FREE = 0
    IN_THREAD = 1
    STARTING = 2
    TURN = 3
    REBUILDING = 4
    MANIFEST = 5
    SUPERBLOCK = 6
    SYNCING = 7
    STORE_LOCK = 8
    FILE_TABLE = 9
    NUMBERS = 10
    ROOM = 11
    OPEN_FILES = 12
    POSITION = 13


# The highest rank of what the calling thread holds.
cdef int held() noexcept nogil
# Notes that the calling thread holds something of a rank; returns what `resume` takes once it no longer does.
cdef int hold(int rank) noexcept nogil
cdef void resume(int before) noexcept nogil
# Raises TransactionError when the thread holds anything.
cdef int require_free(str doing) except -1
# Sleeps 0.1 ms, on its way to another try for a lock.
cdef void rest() noexcept nogil
# The error that is raised in place of a wait.
cdef object refusal(str doing)


@cython.final
cdef class RankedLock:

    cdef readonly int rank
    cdef bint reentrant
    cdef object lock
    cdef unsigned long owner        # the thread that has it; 0: none
    cdef Py_ssize_t depth           # how often its owner has taken it
    cdef int before                 # what its owner held before

    cdef bint take(self, bint blocking, double timeout) except -1
    # Before a fork: waits without handling signals, up to a moment of the monotonic clock. False when it could not take
    # the lock by then, or had it before.
    cdef bint take_silently(self, uint64_t until_ns) except -1
    cdef int give_back(self) except -1
