"""NodeIDs for Python: building one from its parts and taking it apart."""

from libc.stdint cimport uint64_t

from xtree.persistence.pages.node_id cimport (
    LAST_TAG, MAX_SHARDS, SLOT_BITS, handle_of, make_handle, make_node_id, shard_of, slot_of, tag_of,
)

INVALID = 0
SHARDS = MAX_SHARDS
SLOTS = <uint64_t>1 << SLOT_BITS    # of a shard


def pack(shard: int, slot: int, tag: int) -> int:
    """The NodeID of a slot in a shard. Raises ValueError for a part out of range."""
    if not (0 <= shard < SHARDS and 0 <= slot < SLOTS and 1 <= tag <= LAST_TAG):
        raise ValueError(f"no such node: shard {shard}, slot {slot}, tag {tag}")
    return make_node_id(make_handle(<uint64_t>shard, <uint64_t>slot), tag)


def unpack(uint64_t node) -> tuple[int, int, int]:
    """(shard, slot, tag) of a NodeID. Raises OverflowError for what 64 bits can't hold."""
    return shard_of(handle_of(node)), slot_of(handle_of(node)), tag_of(node)
