"""NodeID: the 64-bit name of a page, `[63:8] handle | [7:0] tag`; 0 is "no node".

Of the handle's 56 bits the top 6 are the shard, the other 50 the slot in that shard. The tag runs 1..255: it
moves once per life of a handle, so a NodeID of an earlier life doesn't resolve. Never renumber: NodeIDs are
stored in pages, log frames and checkpoints.
"""

from libc.stdint cimport uint8_t, uint64_t

ctypedef uint64_t NodeID

cdef enum:
    TAG_BITS = 8
    SLOT_BITS = 50
    SHARD_BITS = 6
    MAX_SHARDS = 64
    LAST_TAG = 255


cdef inline NodeID make_node_id(uint64_t handle, uint8_t tag) noexcept nogil:
    return (handle << TAG_BITS) | tag


cdef inline uint64_t handle_of(NodeID node) noexcept nogil:
    return node >> TAG_BITS


cdef inline uint8_t tag_of(NodeID node) noexcept nogil:
    return <uint8_t>(node & 0xFF)


cdef inline uint64_t make_handle(uint64_t shard, uint64_t slot) noexcept nogil:
    return shard << SLOT_BITS | slot


cdef inline uint64_t shard_of(uint64_t handle) noexcept nogil:
    """The shard of a handle of at most 56 bits."""
    return handle >> SLOT_BITS


cdef inline uint64_t slot_of(uint64_t handle) noexcept nogil:
    """The slot of a handle in its shard; 0 is never given out."""
    return handle & ((<uint64_t>1 << SLOT_BITS) - 1)


cdef inline uint8_t next_tag(uint8_t tag) noexcept nogil:
    """The tag of the next life: 1 after 255, and never 0."""
    return 1 if tag == LAST_TAG else tag + 1
