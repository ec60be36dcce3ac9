"""NodeIDs: the parts that are put in come out again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtree.persistence.pages import node_id

parts = st.tuples(st.integers(0, 2**6 - 1), st.integers(0, 2**50 - 1), st.integers(1, 255))


@given(parts)
def test_unpack_gives_what_pack_took(shard_slot_tag):
    assert node_id.unpack(node_id.pack(*shard_slot_tag)) == shard_slot_tag


@given(parts)
def test_the_layout_is_shard_slot_tag_from_the_highest_bit_down(shard_slot_tag):
    shard, slot, tag = shard_slot_tag
    assert node_id.pack(shard, slot, tag) == shard << 58 | slot << 8 | tag


@given(parts)
def test_no_node_is_the_invalid_one(shard_slot_tag):
    assert node_id.pack(*shard_slot_tag) != node_id.INVALID == 0


@pytest.mark.parametrize("bad", [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 2**50, 1), (0, 0, 0), (0, 0, 256)])
def test_parts_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="no such node"):
        node_id.pack(*bad)


def test_what_64_bits_cannot_hold_is_refused():
    assert node_id.unpack(2**64 - 1) == (63, 2**50 - 1, 255)
    with pytest.raises(OverflowError):
        node_id.unpack(2**64)
