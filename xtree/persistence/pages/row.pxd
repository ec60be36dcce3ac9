"""The row of a handle: one cache line. One word of it holds state, tag and kind.

    field               written by                                 read by              order
    word                reserve, publish, retire, free;            any thread           release / acquire
                        verified bit: any reader (exchange)
    address             reserve                                    any thread           relaxed, ordered by word
    birth, retire       reserve, publish, retire                   with a pin           release / acquire; code that may
                                                                                        meet a reservation reads retire
                                                                                        first
    crc                 seal, before publish                       with a pin           plain, ordered by word
    next                the table's lists                          the store's lock     plain
    log_number          whoever carries a commit; reserve          whoever carries one  plain, the turn
    claimed             writers (compare-exchange), reserve        writers              seq_cst
    made_at             the write set that reserved the row;       the same one         plain
                        replay, before anyone else sees the table
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    # word: [7:0] tag, [8] verified, [11:9] state, [23:16] kind, [31:24] size class
    WORD_VERIFIED = 0x100
    WORD_TAG = 0xFF
    STATE_SHIFT = 9
    STATE_MASK = 0xE00
    KIND_SHIFT = 16
    CLASS_SHIFT = 24
    STATE_FREE = 0
    STATE_RESERVED = 1
    STATE_LIVE = 2
    STATE_RETIRED = 3


cdef struct Row:
    uint64_t word
    uint64_t address
    uint64_t birth                  # 2**64 - 1 while reserved
    uint64_t retire                 # 2**64 - 1 until it is retired
    uint64_t next                   # the next handle in the free list or the retired list, 0 at its end
    uint32_t crc                    # of the page, known when it is sealed
    uint32_t log_number             # the log that the page can be rebuilt from; 0: none, the page was flushed
    uint64_t claimed                # 1 while a write set is going to retire the page; no second one may
    uint64_t made_at                # while reserved: its place in the list of the write set that made it


cdef inline int state_of(uint64_t word) noexcept nogil:
    return <int>((word & STATE_MASK) >> STATE_SHIFT)


cdef inline int kind_of(uint64_t word) noexcept nogil:
    return <int>((word >> KIND_SHIFT) & 0xFF)


cdef inline int class_of(uint64_t word) noexcept nogil:
    return <int>((word >> CLASS_SHIFT) & 0xFF)


cdef inline uint64_t make_word(int state, int tag, int kind, int size_class) noexcept nogil:
    return (<uint64_t>state << STATE_SHIFT | <uint64_t>tag | <uint64_t>kind << KIND_SHIFT
            | <uint64_t>size_class << CLASS_SHIFT)


cdef inline uint64_t with_state(uint64_t word, int state) noexcept nogil:
    return (word & ~<uint64_t>STATE_MASK) | <uint64_t>state << STATE_SHIFT
