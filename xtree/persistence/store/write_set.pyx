"""The write set: the pages that one transaction makes and retires. docs: write_set.pxd."""

cimport cython
from cpython.pythread cimport PyThread_release_lock
from cpython.weakref cimport PyWeakref_NewRef
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from xtree.persistence.base.atomics cimport compare_exchange, load_relaxed, store_relaxed, store_seq
from xtree.persistence.base.lock_ranks cimport STORE_LOCK, held, require_free
from xtree.persistence.base.pythread cimport get_gil_back, let_gil_go
from xtree.persistence.base.right_of_way cimport got_gil, want_gil
from xtree.persistence.base.memory cimport reallocate, release
from xtree.persistence.pages.node_id cimport handle_of, tag_of
from xtree.persistence.pages.object_table cimport STATE_RESERVED, WORD_TAG, Row, class_of, state_of
from xtree.persistence.pages.page cimport SIZE_CLASSES, PagePrefix, class_bytes, clear_page
from xtree.persistence.pages.page_checksum cimport page_crc
from xtree.persistence.store.store cimport (
    CLOSED, FORKED, Store, drop_lock, hold_lock, lock_with_gil, resolve, try_lock,
)

from xtree.errors import CorruptionError, TransactionError

cdef enum:                          # work so short that giving the GIL away for it costs more
    SEALED_WITH_GIL = 1 << 17       # bytes of pages
    PUBLISHED_WITH_GIL = 256        # rows


cdef inline bint fits(int size_class, Py_ssize_t content_bytes) noexcept nogil:
    """Whether a page of a class has room for so many bytes after its prefix."""
    return <uint64_t>content_bytes <= class_bytes(size_class) - sizeof(PagePrefix)


cpdef WriteSet begin(Store store):
    """A new WriteSet on a store's current epoch.

    Raises ClosedError, ReadOnlyError, StoreFailedError; TransactionError where a write would wait for itself.
    """
    cdef int flight
    if store is None:
        raise TypeError("a store is needed")
    require_free("a write")
    flight = store.enter()
    try:
        store.need_writable()
        store.make_ready()
        if store.abandoned:
            store.give_back_abandoned()
        return WriteSet(store)
    finally:
        store.leave(flight)


@cython.final
cdef class WriteSet:
    def __cinit__(self, Store store not None):
        self.made = NULL
        self.retired = NULL
        self.pin = -1
        self.store = store
        self.status = "open"
        self.pin = store.epochs.pin()
        self.base = store.published
        store.write_sets[<size_t><void *>self] = PyWeakref_NewRef(self, None)

    def __dealloc__(self):
        # abort() has run in __del__; here only memory is left.
        release(self.made)
        release(self.retired)

    def __del__(self):
        if self.status == "open" and self.store.status < CLOSED:
            self.abort()

    cdef int require_open(self) except -1:
        if self.status != "open":
            raise TransactionError(f"the transaction is {self.status}")
        return 0

    cdef void release_pin(self) noexcept:
        cdef int slot = self.pin
        self.pin = -1
        if slot >= 0:
            self.store.epochs.unpin(slot)

    cdef bint made_here(self, NodeID node) noexcept nogil:
        cdef Row *row = self.store.table.row(handle_of(node))
        cdef uint64_t word
        if row == NULL:
            return False
        word = load_relaxed(&row.word)
        return (state_of(word) == STATE_RESERVED and (word & WORD_TAG) == tag_of(node)
                and row.made_at < <uint64_t>self.made_count and self.made[row.made_at].node == node)

    cdef void lock_store(self) noexcept nogil:
        """Waits for the store's lock, without the GIL."""
        if not self.gil.held:
            hold_lock(self.store)
            return
        if try_lock(self.store):
            return
        let_gil_go(&self.gil)
        hold_lock(self.store)
        want_gil()
        get_gil_back(&self.gil)
        got_gil()

    cdef void begin_with_gil(self) noexcept nogil:
        self.gil.held = True

    cdef void end_with_gil(self) noexcept nogil:
        if not self.gil.held:
            want_gil()
            get_gil_back(&self.gil)
            got_gil()
        self.gil.held = False

    cdef int grow(self, void **list_, Py_ssize_t *room, Py_ssize_t count, size_t size) except -1 nogil:
        """Makes room for one more entry of a list, of `size` bytes."""
        cdef void *larger
        cdef Py_ssize_t wanted
        if count < room[0]:
            return 0
        wanted = 2 * count + 32
        larger = reallocate(list_[0], wanted * size)
        if larger == NULL:
            with gil:
                raise MemoryError("no memory for a transaction's page list")
        list_[0] = larger
        room[0] = wanted
        return 0

    cdef char *take(self, int kind, int size_class, NodeID *node) except NULL nogil:
        cdef uint64_t address = 0
        cdef bint allocated = False, placed = False
        self.grow(<void **>&self.made, &self.made_room, self.made_count, sizeof(Made))
        self.lock_store()
        try:
            self.store.allocator.allocate(size_class, self.spends_reserve, &address)
            allocated = True
            try:
                node[0] = self.store.table.reserve(kind, size_class, address)
                placed = True
            finally:
                if not placed:
                    store_relaxed(&self.store.handle_failures, self.store.handle_failures + 1)
                    self.store.allocator.free(address)
        finally:
            if not allocated:
                store_relaxed(&self.store.allocation_failures, self.store.allocation_failures + 1)
            drop_lock(self.store)
        self.store.table.row(handle_of(node[0])).made_at = self.made_count
        self.made[self.made_count].node = node[0]
        self.made[self.made_count].replaces = 0
        self.made_count += 1
        self.bytes_made += class_bytes(size_class)
        return self.store.place_to_write(address)

    cdef char *reserve(self, int kind, int size_class, NodeID *node) except NULL nogil:
        cdef char *page = self.take(kind, size_class, node)
        clear_page(page, kind, size_class, node[0])
        return page

    cdef char *writable(self, NodeID *node) except NULL nogil:
        cdef char *page
        cdef char *copy
        cdef const PagePrefix *prefix
        cdef NodeID old = node[0]
        if self.made_here(old):
            return resolve(self.store, old)
        page = resolve(self.store, old)
        prefix = <const PagePrefix *>page
        copy = self.take(prefix.kind, prefix.size_class, node)
        self.claim(old)
        self.made[self.made_count - 1].replaces = old
        memcpy(copy, page, class_bytes(prefix.size_class))
        (<PagePrefix *>copy).node_id = node[0]
        return copy

    cdef int retire(self, NodeID node) except -1 nogil:
        cdef Row *row
        cdef Made *made
        if self.made_here(node):
            row = self.store.table.row(handle_of(node))
            made = &self.made[row.made_at]
            if made.replaces:
                self.remember_retired(made.replaces)
            made.node = made.replaces = 0           # a later life of the handle may have this tag again
            self.bytes_made -= class_bytes(class_of(row.word))
            self.lock_store()
            try:
                self.store.give_back(node)
            finally:
                drop_lock(self.store)
            return 0
        resolve(self.store, node)
        self.grow(<void **>&self.retired, &self.retired_room, self.retired_count, sizeof(NodeID))
        self.claim(node)
        return self.remember_retired(node)

    cdef int remember_retired(self, NodeID node) except -1 nogil:
        self.grow(<void **>&self.retired, &self.retired_room, self.retired_count, sizeof(NodeID))
        self.retired[self.retired_count] = node
        self.retired_count += 1
        return 0

    cdef int claim(self, NodeID node) except -1 nogil:
        """Says that this write set retires a page. Only one write set can: a page has one parent."""
        if not compare_exchange(&self.store.table.row(handle_of(node)).claimed, 0, 1):
            with gil:
                raise CorruptionError(f"{self.store.where()}: node {node:#x} is reached twice")
        return 0

    cdef int seal_all(self) except -1 nogil:
        """Gives every page made its CRC, in its header and in its row."""
        cdef Py_ssize_t i
        cdef char *page
        cdef uint32_t crc
        for i in range(self.made_count):
            if self.made[i].node:
                page = resolve(self.store, self.made[i].node)
                crc = page_crc(page, class_bytes((<PagePrefix *>page).size_class))
                (<PagePrefix *>page).crc = crc
                self.store.table.seal(self.made[i].node, crc)
        return 0

    # Pages for structures written in Python; compiled ones use the cdef methods.

    def add_page(self, int kind, int size_class, const unsigned char[::1] content):
        """Makes a page with this content after its prefix; returns its NodeID. Kinds from 128 on are free to use.

        Raises ValueError for content that doesn't fit, OSError, MemoryError.
        """
        cdef NodeID node = 0
        cdef char *page
        require_free("a write")
        if not 1 <= kind <= 255 or not 0 <= size_class < SIZE_CLASSES:
            raise ValueError(f"no such page: kind {kind}, size class {size_class}")
        self._require_fits(size_class, content)
        cdef int flight = self.store.enter()
        try:
            with nogil:
                page = self.reserve(kind, size_class, &node)
            if content.shape[0]:
                memcpy(page + sizeof(PagePrefix), &content[0], content.shape[0])
            return node
        finally:
            self.store.leave(flight)

    def replace_page(self, NodeID node, const unsigned char[::1] content):
        """Overwrites the beginning of a page, or of a copy of it; returns the NodeID that it has now."""
        cdef char *page
        cdef int size_class, flight
        require_free("a write")
        self.require_open()
        flight = self.store.enter()
        try:
            with nogil:
                page = resolve(self.store, node)
                size_class = (<PagePrefix *>page).size_class
                if fits(size_class, content.shape[0]):
                    page = self.writable(&node)
            self._require_fits(size_class, content)
            if content.shape[0]:
                memcpy(page + sizeof(PagePrefix), &content[0], content.shape[0])
            return node
        finally:
            self.store.leave(flight)

    def remove_page(self, NodeID node):
        """Removes a page."""
        cdef int flight
        require_free("a write")
        self.require_open()
        flight = self.store.enter()
        try:
            with nogil:
                self.retire(node)
        finally:
            self.store.leave(flight)

    def _require_fits(self, int size_class, const unsigned char[::1] content):
        self.require_open()
        if not fits(size_class, content.shape[0]):
            raise ValueError(f"{content.shape[0]} bytes don't fit into a page of {class_bytes(size_class)}")

    def __len__(self):
        """Pages made and not given back."""
        cdef Py_ssize_t i, n = 0
        for i in range(self.made_count):
            n += self.made[i].node != 0
        return n

    @property
    def changed(self):
        """Whether there is anything to commit but catalog entries."""
        return self.made_count > 0 or self.retired_count > 0

    def depend_on(self, WriteSet before):
        """Builds on the pages of a write set that is queued. Does nothing when that has ended well meanwhile.

        Raises TransactionError when that is going to fail, because one that it builds on itself has failed.
        """
        self.require_open()
        depends = [] if self.depends is None else self.depends
        before.require_foundation()
        if before.status == "queued" and before is not self:
            depends.append(before)
            self.depends = depends
            before.dependants += 1

    def require_foundation(self):
        """Raises TransactionError when a write set that this one builds on, directly or not, has failed."""
        cdef WriteSet before
        depends = self.depends
        if depends is not None:
            for before in depends:
                if before.status != "queued" and before.status != "committed":
                    raise TransactionError("the transaction builds on one that failed, and was aborted")
                before.require_foundation()

    def commit(self, dict changes, on_queued=None):
        """Makes the pages, and the catalog changes {name: CatalogEntry or None}, visible as one epoch; returns it.

        Returns when the store's durability promise holds. on_queued: called, if the store has a queue, once this write
        set has its place in it: from then on another one may build on it. Raises TransactionError for a write set that
        has ended or builds on one that failed, OSError or MemoryError with everything undone, or StoreFailedError when
        the outcome is unknown. A KeyboardInterrupt that arrives meanwhile is raised after the outcome is known;
        `status` tells it.
        """
        cdef int flight
        require_free("a commit")
        self.require_open()
        flight = self.store.land(self.store.enter())
        try:
            self.store.need_writable()
            self.require_foundation()
            return self.store.commit(self, changes, on_queued)
        finally:
            if self.status == "open":
                self._undo()
            self.store.leave(flight)

    def abort(self):
        """Gives every slot and handle back. Does nothing after the end. Raises TransactionError once it is queued."""
        if self.status == "queued":
            raise TransactionError("a queued transaction can't be aborted")
        if self.status == "open":
            self._undo()

    cdef int ends(self, str status) except -1:
        self.status = status
        self.store.write_sets.pop(<size_t><void *>self, None)
        self.release_pin()
        self.base = None
        return 0

    cdef void drop_lists(self) noexcept nogil:
        """Frees the lists, at the end, once nothing has to be done with the pages any more."""
        release(self.made)
        release(self.retired)
        self.made = NULL
        self.retired = NULL
        self.made_count = self.made_room = self.retired_count = self.retired_room = 0

    def _undo(self):
        self.ends("aborted")
        self.let_claims_go()
        self.give_back_pages()

    cdef void let_claims_go(self) noexcept nogil:
        """Lets others retire what this would have retired: at once, though the pages it made may have to wait."""
        cdef Py_ssize_t i
        if self.store.emptied:
            return
        for i in range(self.retired_count):
            store_seq(&self.store.table.row(handle_of(self.retired[i])).claimed, 0)
        self.retired_count = 0
        for i in range(self.made_count):
            if self.made[i].replaces:
                store_seq(&self.store.table.row(handle_of(self.made[i].replaces)).claimed, 0)
                self.made[i].replaces = 0

    cdef int give_back_pages(self) except -1:
        """Gives the pages back as soon as nothing builds on them; later, where the thread can't wait for the lock."""
        self.held_back = self.dependants > 0
        if self.held_back:
            return 0
        if held() >= STORE_LOCK:            # garbage collection, in the middle of take(), say
            self.store.abandoned.append(self)
            return 0
        if self.store.status < FORKED:
            with nogil:
                self.give_all_back()
        self._let_foundation_go()
        return 0

    def give_back(self):
        """Gives the pages back after an abort that couldn't wait for the lock."""
        with nogil:
            self.give_all_back()
        self._let_foundation_go()

    def _let_foundation_go(self):
        """At the end: what this one builds on needn't be kept for it any more."""
        cdef WriteSet before
        depends, self.depends = self.depends, None
        if depends is not None:
            for before in depends:
                before.dependants -= 1
                if before.dependants == 0 and before.held_back:
                    before.give_back_pages()

    cdef int give_all_back(self) except -1 nogil:
        cdef Py_ssize_t i
        hold_lock(self.store)
        try:
            if not self.store.emptied:
                for i in range(self.made_count):
                    if self.made[i].node:
                        self.store.give_back(self.made[i].node)
        finally:
            drop_lock(self.store)
        self.drop_lists()
        return 0

    def orphan(self):
        """Ends it in a forked child: it was begun in the parent. A call may be using it, so the lists stay."""
        self.status = "aborted"
        self.release_pin()
        self.base = self.depends = None

    # For the code that carries the commit out.

    def seal(self):
        """Finishes the pages with their CRCs. Nothing changes them after this."""
        cdef int flight = self.store.flights.pin()
        try:
            if self.bytes_made <= SEALED_WITH_GIL:
                self.seal_all()
            else:
                with nogil:
                    self.seal_all()
                    want_gil()
                got_gil()
        finally:
            self.store.flights.unpin(flight)

    def queue(self):
        """The point of no return: from here on there is no abort."""
        self.require_open()
        self.status = "queued"

    def publish_rows(self, uint64_t epoch):
        """Makes the rows live and retired; nobody can see that before the catalog that names them. Can't fail."""
        lock_with_gil(self.store.lock)
        if self.made_count + self.retired_count <= PUBLISHED_WITH_GIL:
            self.publish_all(epoch)
        else:
            with nogil:
                self.publish_all(epoch)
                want_gil()
            got_gil()
        PyThread_release_lock(self.store.lock)

    cdef void publish_all(self, uint64_t epoch) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.made_count):
            if self.made[i].node:
                self.store.table.publish(self.made[i].node, epoch)
                if self.made[i].replaces:
                    self.store.table.retire(self.made[i].replaces, epoch)
        for i in range(self.retired_count):
            self.store.table.retire(self.retired[i], epoch)

    def end(self, str status):
        """Ends a queued write set: "committed", "aborted", or "failed" when its outcome is unknown."""
        if status == "aborted":
            self._undo()
            return
        self.ends(status)
        self.drop_lists()
        if status == "committed":
            self._let_foundation_go()
