"""NodeIDs for Python: building one from its parts and taking it apart."""

from xtree.persistence.node_id cimport LAST_TAG, SHARD_BITS, SLOT_BITS, make_node_id, shard_of, slot_of, tag_of

INVALID = 0


def pack(shard: int, slot: int, tag: int) -> int:
    """The NodeID of a slot in a shard. Raises ValueError for a part out of range."""
    if not 0 <= shard < 1 << SHARD_BITS or not 0 <= slot < 1 << SLOT_BITS or not 1 <= tag <= LAST_TAG:
        raise ValueError(f"no such node: shard {shard}, slot {slot}, tag {tag}")
    return make_node_id(<unsigned long long>shard << SLOT_BITS | <unsigned long long>slot, tag)


def unpack(node: int) -> tuple[int, int, int]:
    """(shard, slot, tag) of a NodeID."""
    return shard_of(node), slot_of(node), tag_of(node)
