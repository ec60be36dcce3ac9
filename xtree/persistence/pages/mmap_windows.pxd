"""Windows: large mappings of data files, or of anonymous memory, each with a small logical id.

A page's address is one word, `window << 48 | offset`. `bases` is what a reader sees, so that a pointer is one load and
one addition; `Window.mapping` is what is mapped. Beyond the budget the recycler hides a window's base, waits until
every call that may hold a pointer has ended, and drops the mapping unless somebody has shown it again meanwhile.

    field          written by, with the GIL       read by                     order
    bases[w]       map_window, grow, hide,        any thread, no lock         seq_cst / acquire
                   unmap_all
    bases, table   a new window, when they are    any thread, no lock         release / acquire
                   full: replaced by larger ones
    mapping[w],    map_window, grow, drop,        the same, flush, dealloc    the GIL
    length[w]      unmap_all
    bytes[w]       add_file, add_anonymous        any thread                  plain: before the id is known
    end[w]         add_file, add_anonymous, grow  whoever verifies a page     release / acquire
    announced[w]   announce, expect_writes        writers, no lock            release / acquire
    touched[w]     map_window                     hide; is_anonymous, no lock relaxed: ANONYMOUS never changes
    busy[w]        flush                          hide, drop, drop_outgrown   the GIL
    outgrown       grow, drop_outgrown,           the same, flush, dealloc    the GIL
                   unmap_all
    counters       all of these                   the same, stats             the GIL

The tables grow before the first address in a new window is known, so whoever has an address finds its window in them.
Outgrown tables stay until the end. A thread that loads from a table just as it is replaced may find a base that is
hidden later, in the new table only. Its flight then began before that base was hidden: a flight that begins after that
finds the new tables, as it finds the hidden base. So what the thread has found stays mapped as long as its flight
lasts.

A file that grows beyond its mapping gets a larger one, whose base replaces the old one. The outgrown mapping stays
until all flights that may have seen its base have ended: for them it is as if the base had been hidden.

Whoever uses a pointer is in flight (Store.enter, Store.in_flight) from before the load of the base until the last use.
This suffices because a flight stores its slot and then loads the generation, while hiding stores the base, then the
generation, and then scans the slots, all sequentially consistent. So at least one of the two sees the other: the scan
finds the flight and waits for it, or the flight finds the new generation, and with it every base hidden before. With
weaker orders the stores of both could still be in their store buffers while their loads run; then the scan could miss
the flight, and the flight the hidden base.
"""

cimport cython
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t

from xtree.persistence.base.atomics cimport load_acquire, load_relaxed

cdef enum:
    OFFSET_BITS = 48
    MAX_WINDOWS = 65536


cdef inline uint64_t make_address(uint32_t window, uint64_t offset) noexcept nogil:
    return <uint64_t>window << OFFSET_BITS | offset


cdef inline uint32_t window_of(uint64_t address) noexcept nogil:
    return <uint32_t>(address >> OFFSET_BITS)


cdef inline uint64_t offset_of(uint64_t address) noexcept nogil:
    return address & ((<uint64_t>1 << OFFSET_BITS) - 1)


cdef struct Window:                 # what is known of a window besides its base
    uint64_t mapping                # char *, 0 while it isn't mapped
    uint64_t length                 # bytes that are mapped
    uint64_t bytes                  # how large it may get
    uint64_t end                    # how far its file goes; a mapping covers that
    uint64_t announced              # 1 once the file knows that it is being written to
    uint64_t touched                # when it was last mapped or shown again; ANONYMOUS for memory
    uint64_t busy                   # how many need the mapping itself, not the base
    uint64_t spare


cdef struct Outgrown:               # a mapping that a larger one has replaced
    uint64_t mapping
    uint64_t length
    uint32_t window


@cython.final
cdef class Windows:
    cdef uint64_t bases             # uint64_t *: char * of each window, 0 while it isn't mapped or is hidden
    cdef uint64_t table             # Window *: of each window
    cdef uint32_t room              # how many windows these have room for
    cdef Outgrown *outgrown
    cdef uint32_t outgrown_count, outgrown_room
    cdef readonly uint32_t count
    cdef list files                 # per window: the file that is mapped (docs: add_file), None for anonymous memory
    cdef readonly bint writable
    cdef readonly object recycler   # told when there are more mappings of files than the budget; None: nobody
    cdef readonly uint32_t budget, mapped_files, mapped_peak
    cdef readonly uint64_t recycled, revived, over_budget, unmap_failures
    cdef uint64_t tick
    cdef object __weakref__

    # Maps a window, or shows it again, and returns its base, which may already be hidden again in bases[w]. Several
    # threads map it once. Raises OSError, ValueError, and what opening the file raises.
    cdef char *map_window(self, uint32_t window) except NULL
    # Tells a window's file that it is about to be written to. Raises what opening the file raises.
    cdef int announce(self, uint32_t window) except -1
    # For the recycler. Hides up to n windows of files, those longest untouched, and returns which.
    cdef list hide(self, Py_ssize_t n)
    # Unmaps those of the windows that are still hidden, in order, until the budget is kept; returns how many.
    cdef int drop(self, list windows) except -1
    # The mappings that larger ones have replaced and that may go once nobody uses them any more. Then: unmaps such
    # mappings; returns how many.
    cdef list find_outgrown(self)
    cdef int drop_outgrown(self, list mappings) except -1
    cdef bint may_go(self, uint32_t window) noexcept
    cdef int unmap(self, uint64_t base, uint64_t size) except -1
    cdef int flush_mapping(self, uint32_t window, uint64_t base, uint64_t offset, uint64_t end) except -1
    cdef int cover_files(self) except -1
    # Unmaps and forgets every window. Nothing may read through a pointer any more.
    cpdef int unmap_all(self) except -1

    cdef inline char *pointer(self, uint64_t address) noexcept nogil:
        """The byte at an address; NULL when its window isn't mapped, or hidden."""
        cdef uint64_t *bases = <uint64_t *>load_acquire(&self.bases)
        cdef char *base = <char *>load_acquire(&bases[address >> OFFSET_BITS])
        return NULL if base == NULL else base + (address & ((<uint64_t>1 << OFFSET_BITS) - 1))

    cdef inline Window *at(self, uint32_t window) noexcept nogil:
        """What is known of a window. Good until the GIL is given away; without the GIL, for one access."""
        return <Window *>load_acquire(&self.table) + window

    cdef inline uint64_t *base_of(self, uint32_t window) noexcept nogil:
        return <uint64_t *>load_acquire(&self.bases) + window

    cdef inline bint is_announced(self, uint32_t window) noexcept nogil:
        """Whether the file behind a window knows that it is being written to."""
        return load_acquire(&self.at(window).announced) != 0

    cdef inline bint is_anonymous(self, uint32_t window) noexcept nogil:
        """Whether a window is of anonymous memory."""
        return load_relaxed(&self.at(window).touched) == UINT64_MAX

    cdef inline uint64_t end_of(self, uint32_t window) noexcept nogil:
        """How far pages of a window may reach."""
        return load_acquire(&self.at(window).end)
