"""Rows of object tables, for tests."""

from __future__ import annotations

INFINITE = 2**64 - 1


def handle_of(node):
    return node >> 8


def tag_of(node):
    return node & 255


def live(table, epoch=1, kind=1, size_class=0, address=0, crc=0):
    node = table.reserve_node(kind, size_class, address)
    table.seal_node(node, crc)
    table.publish_node(node, epoch)
    return node


def totals(table):
    """stats() without that of the shards."""
    return {name: value for name, value in table.stats().items() if name != "shards"}


def shard_handle(shard, slot):
    return shard << 50 | slot
