"""WriteSet: the pages that one transaction makes and retires, and their way into an epoch.

For one thread at a time. The cdef methods run without the GIL, and those that wait for the store's lock must, unless
`gil` says that the call has it: then the wait gives it away. Short work of seal_all and publish_all keeps it.
Nobody else sees what they change before the commit: rows of reserved pages can only be reached from pages of the same
transaction, or of one that builds on it.

A write set may build on others that are queued and not published yet. If one of those fails, this one fails too; and
the pages of a failed one are given back only when nothing that builds on it is left.

    field                      written by                            read by                          order
    made, retired, bytes_made, the owner; nobody once it is queued,  the owner, then the leader       the queue
    spends_reserve             until its end drops the lists
    depends                    depend_on, the end of this one        its owner, the leader            the GIL
    dependants, held_back      depend_on, the end of a dependant     the end of this one              the GIL
    gil                        the owner                             the owner                        none needed
    status                     the owner, then the leader            any thread                       the GIL
"""

cimport cython
from libc.stdint cimport uint64_t

from xtree.persistence.base.pythread cimport HeldGil
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Published, Store


cdef struct Made:
    NodeID node                     # 0 once it was given back
    NodeID replaces                 # the page that it began as a copy of, retired by the same commit; 0: none


@cython.final
cdef class WriteSet:

    cdef readonly Store store
    cdef Made *made                 # in the order of their reservation
    cdef Py_ssize_t made_count, made_room
    cdef NodeID *retired            # pages that this transaction removes
    cdef Py_ssize_t retired_count, retired_room
    cdef readonly uint64_t bytes_made   # of all pages made and not given back
    cdef public bint spends_reserve  # its pages may take the reserve of the disk, as it gives space back in the end
    cdef HeldGil gil                # of a call that changes pages with the GIL; a wait or a long search gives it away
    cdef int pin                    # protects the base epoch; -1 when released
    cdef readonly Published base    # what this transaction builds on; None once it has ended
    cdef list depends               # write sets that this one builds on, as long as it hasn't ended
    cdef Py_ssize_t dependants      # write sets that build on this one and haven't ended
    cdef bint held_back             # aborted, its pages kept for its dependants
    cdef readonly str status        # "open", "queued", "committed", "aborted", "failed" (poisoned, outcome unknown)
    cdef object __weakref__

    # A new page: zeroed but for its prefix (magic, format, kind, size class, own NodeID). Raises OSError, MemoryError.
    cdef char *reserve(self, int kind, int size_class, NodeID *node) except NULL nogil
    # The same, except that the bytes of the page are whatever they were before, until clear_page.
    cdef char *take(self, int kind, int size_class, NodeID *node) except NULL nogil
    # The page as this transaction may change it: itself when this transaction made it, else a copy under a new NodeID,
    # with the old one retired. `node` is updated.
    cdef char *writable(self, NodeID *node) except NULL nogil
    # Removes a page: a published one is retired at the commit, one of this transaction is given back at once.
    cdef int retire(self, NodeID node) except -1 nogil
    # Whether this transaction made the page (a reserved page can only be reached by the transaction that made it).
    cdef bint made_here(self, NodeID node) noexcept nogil
    # Between these two a call has the GIL, unless it has given it away by let_gil_go; at the end it is there again.
    cdef void begin_with_gil(self) noexcept nogil
    cdef void end_with_gil(self) noexcept nogil
    cdef void lock_store(self) noexcept nogil
    cdef int claim(self, NodeID node) except -1 nogil
    cdef int remember_retired(self, NodeID node) except -1 nogil
    cdef int grow(self, void **list_, Py_ssize_t *room, Py_ssize_t count, size_t size) except -1 nogil
    cdef int seal_all(self) except -1 nogil
    cdef int give_all_back(self) except -1 nogil
    cdef void let_claims_go(self) noexcept nogil
    cdef int give_back_pages(self) except -1
    cdef int require_open(self) except -1
    cdef int ends(self, str status) except -1
    cdef void drop_lists(self) noexcept nogil
    cdef void publish_all(self, uint64_t epoch) noexcept nogil
    cdef void release_pin(self) noexcept


cpdef WriteSet begin(Store store)
