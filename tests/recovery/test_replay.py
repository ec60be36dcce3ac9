"""Replay: frames advance rows, images and catalog; a frame that can't follow the state before it is corruption.

Promises (What is on the disk before what):

- changed words in the log become the page they make of another, in memory, and are checked before they are written:
  test_any_history_ends_in_the_pages_that_are_live,
  test_recovery.py::test_pages_whose_changed_words_were_logged_are_rebuilt,
  test_changes_of_a_page_that_the_log_does_not_hold_are_corruption.
- forged frames and rows are refused, without large allocations:
  test_a_birth_that_cannot_be_is_corruption, test_forged_handles_take_no_more_memory_than_there_can_be_pages,
  test_wal.py::test_changed_words_that_cannot_be_are_corruption,
  test_stored_table.py::test_a_row_that_cannot_be_right_is_corruption,
  test_stored_table.py::test_rows_that_are_out_of_order_or_of_no_handle_are_corruption,
  test_checkpoint.py::test_a_length_is_never_trusted.
"""

import contextlib
import random
import struct

import numpy as np
import pytest

from xtree.errors import CorruptionError
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.files import frame as frames
from xtree.persistence.files import wal_reader
from xtree.persistence.files.frame import DELTA, FRAME_HEADER_BYTES, LogLink
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.wal import LogWriter
from xtree.persistence.files.wal_reader import read_log
from xtree.persistence.pages import node_id
from xtree.persistence.pages.file_places import FilePlaces
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.pages.page_checksum import page_crc
from xtree.persistence.recovery.replay import Replay
from xtree.persistence.store.catalog import Catalog, CatalogEntry, encode_changes

UUID = bytes(range(16))
LINK = LogLink(3, 40, 123456, 0xABCDEF01)
FILES = {11: (0, 0), 12: (1, 1)}  # by number: window, size class
WINDOW_BYTES = 1 << 20
MAGIC = 0x47505458


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


class Page:
    """A page as a writer has it: its bytes, with a right CRC, and its slot."""

    def __init__(self, node, slot, content=b"", size_class=0):
        self.node, self.slot, self.size_class = node, slot, size_class
        self.bytes = bytearray(4096 << size_class)
        struct.pack_into("<IIQBBHI", self.bytes, 0, MAGIC, 0, node, 200, size_class, 1, 0)
        self.bytes[24 : 24 + len(content)] = content
        self.seal()

    def seal(self):
        struct.pack_into("<I", self.bytes, 4, page_crc(self.bytes))

    @property
    def crc(self):
        return struct.unpack_from("<I", self.bytes, 4)[0]

    @property
    def offset(self):
        return 4096 + self.slot * len(self.bytes)

    def successor(self, node, slot, words):
        """The page that replaces this one, with some other words, and its payload of ranges."""
        after = Page(node, slot, size_class=self.size_class)
        after.bytes[16:] = self.bytes[16:]
        for word, value in words.items():
            struct.pack_into("<Q", after.bytes, 8 * word, value)
        after.seal()
        return after, ranges_of(words)


def ranges_of(words):
    """Words as ranges: adjacent words are in one range."""
    payload, run = b"", []
    for word in [*sorted(words), None]:
        if run and word != run[-1] + 1:
            payload += struct.pack(f"<HH{len(run)}Q", run[0], len(run), *(words[w] for w in run))
            run = []
        run.append(word)
    return payload


class Log:
    """Writes frames by hand; `replayed` applies them to a table."""

    def __init__(self, directory):
        self.fs = FileSystem()
        self.writer = LogWriter.create(self.fs, directory, UUID, 7, LINK, 64 << 10)
        self.writer.write_link(40)
        self.epoch = 40
        self.begin()

    def begin(self):
        self.deltas, self.payloads, self.payload_bytes = [], [], 0

    def birth(self, page, form=frames.PAYLOAD_WHOLE, payload=None, old=None, **fields):
        delta = np.zeros((), DELTA)
        delta["node_id"], delta["epoch"], delta["op"], delta["kind"] = page.node, self.epoch + 1, frames.OP_BIRTH, 200
        delta["size_class"], delta["payload_form"] = page.size_class, form
        delta["file_number"], delta["offset"] = 11 + page.size_class, page.offset
        delta["page_crc"], delta["page_bytes"] = page.crc, len(page.bytes)
        if old is not None:
            delta["replaces"], delta["base_crc"] = old.node, old.crc
        if form != frames.PAYLOAD_NONE:
            payload = bytes(page.bytes) if payload is None else payload
            delta["payload_offset"], delta["payload_bytes"] = self.payload_bytes, len(payload)
            self.payloads.append(payload)
            self.payload_bytes += len(payload)
        for name, value in fields.items():
            delta[name] = value
        self.deltas.append(delta)

    def retire(self, page, **fields):
        delta = np.zeros((), DELTA)
        delta["node_id"], delta["epoch"], delta["op"] = page.node, self.epoch + 1, frames.OP_RETIRE
        for name, value in fields.items():
            delta[name] = value
        self.deltas.append(delta)

    def commit(self, catalog=b"", epoch=None):
        """Writes the frame; returns the offset of its first delta."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        data = b"".join(delta.tobytes() for delta in self.deltas)
        self.writer.reserve(frames.frame_bytes(len(self.deltas), len(catalog), self.payload_bytes))
        length = self.writer.append(
            self.epoch, self.epoch, 40, [data], catalog, 1, self.payloads
        )
        self.begin()
        return self.writer.end_offset - length + FRAME_HEADER_BYTES

    def replayed(self, replay=None):
        self.writer.sync()
        replay = replay or new_replay()
        with contextlib.closing(read_log(self.fs, self.writer.path, UUID, 7)) as reader:
            for run in reader.runs():
                replay.apply(run)
        return replay


def new_replay(catalog=None, epoch=40):
    return Replay(ObjectTable(), FilePlaces(FILES, WINDOW_BYTES), catalog or Catalog(), epoch)


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path)
    yield made
    made.writer.close()


def no_reads(window, offset, n):
    raise AssertionError(f"read of window {window}, offset {offset}")


def images_of(replay):
    """(window, offset) -> bytes of each image, after the end."""
    replay.finish()
    replay.table.check()
    replay.check_pages(no_reads, str)
    found = {}
    for window, offset, data in replay.image_runs(most_bytes=3 * 8192):
        assert len(data) <= 3 * 8192
        size = 4096 << window
        for at in range(0, len(data), size):
            found[window, offset + at] = bytes(data[at : at + size])
    assert len(found) == replay.image_count
    return found


def node(handle, tag=1, shard=0):
    return node_id.pack(shard, handle, tag)


def live_rows(table):
    return {row["node"]: row for row in table.rows() if row["state"] == "live"}


def test_births_and_retirements_become_rows(log):
    one, two, three = (Page(node(handle), handle, b"%d" % handle) for handle in (1, 2, 5))
    log.birth(one)
    log.birth(two, form=frames.PAYLOAD_NONE)
    log.birth(three)
    log.commit()
    log.retire(one)
    log.commit()
    replay = log.replayed()
    assert (replay.epoch, replay.frames, replay.deltas, replay.image_count) == (42, 2, 4, 1)
    replay.finish()
    replay.table.check()
    rows = live_rows(replay.table)
    assert rows.keys() == {two.node, three.node}
    assert rows[three.node] == {
        "node": three.node,
        "handle": 5,
        "tag": 1,
        "state": "live",
        "verified": False,
        "kind": 200,
        "size_class": 0,
        "window": 0,
        "offset": three.offset,
        "birth": 41,
        "retire": 2**64 - 1,
        "crc": three.crc,
    }
    assert [row["tag"] for row in replay.table.rows()] == [1, 1, 0, 0, 1]
    assert replay.table.reserve_node(1, 0, 0) == node(1, 2)
    assert replay.table.reserve_node(1, 0, 0) == node(3, 1)


def test_changed_words_become_part_of_the_image_they_change(log):
    before = Page(node(1), 0, b"before")
    after, payload = before.successor(node(2), 7, {3: 1, 4: 2, 300: 3, 511: 4})
    last, nothing = after.successor(node(1, 2), 3, {})
    log.birth(before)
    log.commit()
    log.birth(after, frames.PAYLOAD_RANGES, payload, old=before)
    log.birth(last, frames.PAYLOAD_RANGES, nothing, old=after)
    log.commit()
    replay = log.replayed()
    assert replay.image_count == 1
    assert images_of(replay) == {(0, last.offset): bytes(last.bytes)}
    assert live_rows(replay.table).keys() == {last.node}


def test_a_page_may_be_replaced_by_one_of_another_size_or_one_that_was_flushed(log):
    small, large = Page(node(1), 0), Page(node(2), 0, b"large", size_class=1)
    flushed, small_again = Page(node(3), 1, b"flushed"), Page(node(4), 2, b"small")
    log.birth(small)
    log.commit()
    log.birth(large, old=small)
    log.commit()
    replay = log.replayed()
    assert images_of(replay) == {(1, 4096): bytes(large.bytes)}
    log.birth(flushed, frames.PAYLOAD_NONE, old=large)
    log.commit()
    assert log.replayed().image_count == 0
    log.birth(small_again, old=flushed)
    log.commit()
    assert images_of(log.replayed()) == {(0, small_again.offset): bytes(small_again.bytes)}


def test_any_history_ends_in_the_pages_that_are_live(log, monkeypatch):
    monkeypatch.setattr(wal_reader, "CHUNK_BYTES", 100_000)
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    live, free_slots, tags, free = {}, [list(range(120)), list(range(60))], {}, []

    def new_node():
        if free and rng.random() < 0.7:
            handle = free.pop(rng.randrange(len(free)))
        else:
            handle = (len(tags) + 1) if rng.random() < 0.8 else node(len(tags) + 1, 1, shard=rng.randrange(4)) >> 8
        tags[handle] = tags.get(handle, 0) % 255 + 1
        return handle << 8 | tags[handle]

    for _ in range(300):
        for _ in range(rng.randrange(1, 8)):
            what = rng.choice(("birth", "whole", "ranges", "ranges", "ranges", "retire"))
            old = live.pop(rng.choice(sorted(live))) if live and what != "birth" else None
            if what == "retire" and old is not None:
                log.retire(old)
            elif what == "ranges" and old is not None:
                words = {rng.randrange(2, len(old.bytes) // 8): rng.getrandbits(64) for _ in range(rng.randrange(30))}
                words.pop(2, None)  # kind, size class and format
                slot = free_slots[old.size_class].pop(rng.randrange(len(free_slots[old.size_class])))
                page, payload = old.successor(new_node(), slot, words)
                log.birth(page, frames.PAYLOAD_RANGES, payload, old=old)
                live[page.node] = page
            else:
                size_class = rng.choice((0, 0, 1))
                if old is None and len(live) > 40:
                    continue
                page = Page(new_node(), free_slots[size_class].pop(0), rng.randbytes(50), size_class)
                log.birth(page, old=old)
                live[page.node] = page
            if old is not None:
                free.append(old.node >> 8)
                free_slots[old.size_class].append(old.slot)
        log.commit()
    replay = log.replayed()
    assert replay.image_count == len(live)
    rows = live_rows(replay.table)
    assert {n: (r["window"], r["offset"], r["crc"]) for n, r in rows.items()} == {
        n: (p.size_class, p.offset, p.crc) for n, p in live.items()
    }
    assert images_of(replay) == {(p.size_class, p.offset): bytes(p.bytes) for p in live.values()}
    assert {row["handle"]: row["tag"] for row in replay.table.rows() if row["tag"]} == tags


def test_images_may_be_placed_in_memory_instead(log):
    pages = [Page(node(handle), 9 - handle, b"%d" % handle) for handle in (1, 2, 3)]
    for page in pages:
        log.birth(page)
    log.birth(Page(node(4), 50), frames.PAYLOAD_NONE)
    log.commit()
    replay = log.replayed()
    replay.finish()
    assert [bytes(image) for image in replay.images()] == [bytes(page.bytes) for page in reversed(pages)]
    replay.place_images(5, [4096, 8192, 12288])
    rows = live_rows(replay.table)
    assert [(rows[p.node]["window"], rows[p.node]["offset"]) for p in pages] == [(5, 12288), (5, 8192), (5, 4096)]
    assert rows[node(4)]["window"] == 0


# What can't be.


def refused(log, at, why):
    with pytest.raises(CorruptionError, match=rf"wal-0000000007\.log: at offset {at}: .*{why}"):
        log.replayed()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"file_number": 13}, "data file that isn't there"),
        ({"file_number": 0}, "data file that isn't there"),
        ({"file_number": 12}, "data file of another size class"),
        ({"offset": 0}, "outside its data file"),
        ({"offset": WINDOW_BYTES}, "outside its data file"),
        ({"offset": 2**64 - 4096}, "outside its data file"),
        ({"offset": 4096 + 512}, "misaligned"),
        ({"op": frames.OP_RELOCATE}, "another operation"),
        ({"node_id": node(1)}, "handle that is in use"),
        ({"node_id": node(1, 2)}, "handle that is in use"),
        ({"node_id": node(10**6)}, "in use, or can't be"),
        ({"node_id": node(2**50 - 1)}, "in use, or can't be"),
        ({"node_id": node(10**6, 1, 63)}, "in use, or can't be"),
        ({"replaces": node(3)}, "replaced that isn't live"),
        ({"replaces": node(1, 9)}, "replaced that isn't live"),
        ({"replaces": node(2**50 - 1, 1, 63)}, "replaced that isn't live"),
    ],
)
def test_a_birth_that_cannot_be_is_corruption(log, fields, why):
    log.birth(Page(node(1), 0))
    log.commit()
    log.birth(Page(node(2), 1))
    log.birth(Page(node(4), 2), **fields)
    refused(log, log.commit() + 64, why)


@pytest.mark.parametrize("bad", [node(2), node(1, 2), node(2**50 - 1), node(1, 1, 5)])
def test_a_retirement_of_what_is_not_live_is_corruption(log, bad):
    log.birth(Page(node(1), 0))
    log.commit()
    log.retire(Page(node(1), 0), node_id=bad)
    refused(log, log.commit(), "retired that isn't live")


def test_a_page_is_retired_once(log):
    page = Page(node(1), 0)
    log.birth(page)
    log.commit()
    log.retire(page)
    log.retire(page)
    refused(log, log.commit() + 64, "retired that isn't live")


@pytest.mark.parametrize("what", ["flushed", "version", "size", "gone"])
def test_changes_of_a_page_that_the_log_does_not_hold_are_corruption(log, what):
    before = Page(node(1), 0, b"before")
    after, payload = before.successor(node(2), 1, {3: 1})
    log.birth(before, frames.PAYLOAD_NONE if what == "flushed" else frames.PAYLOAD_WHOLE)
    log.commit()
    if what == "gone":
        log.retire(before)
        log.commit()
    fields = {"version": {"base_crc": before.crc ^ 1}}.get(what, {})
    if what == "size":
        after = Page(node(2), 1, size_class=1)
    log.birth(after, frames.PAYLOAD_RANGES, payload, old=before, **fields)
    reasons = {"flushed": "no log holds", "version": "another version", "size": "another size", "gone": "isn't live"}
    refused(log, log.commit(), reasons[what])


def test_epochs_that_do_not_go_on_are_corruption(log):
    log.birth(Page(node(1), 0))
    at = log.commit() - FRAME_HEADER_BYTES
    with pytest.raises(CorruptionError, match=f"at offset {at}: expected an epoch after 41, found 41"):
        log.replayed(new_replay(epoch=41))


def test_forged_handles_take_no_more_memory_than_there_can_be_pages(log):
    for shard in range(64):
        log.birth(Page(node(60_000, 1, shard), shard))
    at = log.commit()
    with pytest.raises(CorruptionError, match="in use, or can't be") as caught:
        log.replayed()
    assert f"at offset {at + 64}:" in str(caught.value)  # the second one


def test_an_image_with_another_crc_than_its_row_is_corruption(log):
    page = Page(node(1), 3)
    damaged = bytearray(page.bytes)
    damaged[1000] ^= 1
    log.birth(page, payload=bytes(damaged))
    log.commit()
    replay = log.replayed()
    replay.finish()
    with pytest.raises(CorruptionError, match=f"file 0, offset {page.offset}: page of node 0x101: it has CRC"):
        replay.check_pages(no_reads, lambda window: f"file {window}")


def test_pages_that_were_flushed_are_read_and_checked(log):
    pages = [Page(node(i + 1), i + (i > 5), b"%d" % i) for i in range(10)]
    for page in pages:
        log.birth(page, frames.PAYLOAD_NONE)
    log.commit()
    replay = log.replayed()
    replay.finish()
    content = bytearray(20 * 4096)
    for page in pages:
        content[page.offset : page.offset + 4096] = page.bytes
    reads = []

    def read(window, offset, n):
        reads.append((window, offset, n))
        return bytes(content[offset : offset + n])

    replay.check_pages(read, str, most_bytes=3 * 4096)
    assert reads == [(0, 4096, 12288), (0, 16384, 12288), (0, 32768, 12288), (0, 45056, 4096)]
    replay.check_pages(read, str)
    assert reads[4:] == [(0, 4096, 24576), (0, 32768, 16384)]
    content[pages[7].offset + 9] ^= 1
    with pytest.raises(CorruptionError, match=f"0, offset {pages[7].offset}: page of node 0x801: it has CRC"):
        replay.check_pages(read, str)
    del content[45056 + 100 :]
    with pytest.raises(CorruptionError, match="behind the end of its file"):
        replay.check_pages(read, str)


def test_the_last_record_of_a_name_counts(log):
    entries = [CatalogEntry("a", "text", root, b"%d" % root) for root in range(5)]
    log.commit(encode_changes({"a": entries[0], "b": CatalogEntry("b", "text", 9, b"")}))
    log.commit(encode_changes({"a": entries[1], "c": CatalogEntry("c", "text", 2, b"")}))
    log.commit(encode_changes({"c": None, "a": entries[4]}))
    base = Catalog({"b": CatalogEntry("b", "text", 1, b""), "z": CatalogEntry("z", "text", 3, b"")})
    replay = log.replayed(new_replay(base))
    found = {entry.name: entry.root for entry in replay.catalog}
    assert found == {"a": 4, "b": 9, "z": 3}
    log.commit(encode_changes({"z": None}))
    assert {entry.name for entry in log.replayed(new_replay(base)).catalog} == {"a", "b"}


@pytest.mark.parametrize(
    "catalog",
    [
        b"x",
        bytes(15),
        struct.pack("<BBHIQ", 1, 4, 1, 100, 0) + b"texta",
        struct.pack("<BBHIQ", 1, 4, 65535, 2**32 - 1, 0),
        struct.pack("<BBHIQ", 9, 4, 1, 0, 0) + b"texta" + bytes(3),
        struct.pack("<BBHIQ", 1, 4, 1, 0, 0) + b"text\xff" + bytes(3),
        encode_changes({"a": None}) + b"xxxx",
    ],
)
def test_catalog_records_that_cannot_be_are_corruption(log, catalog):
    log.commit(catalog)
    with pytest.raises(CorruptionError, match=r"wal-0000000007\.log: at offset \d+: expected a catalog record"):
        log.replayed().catalog  # noqa: B018


def test_no_memory_is_a_memory_error_at_every_allocation(log):
    pages = [Page(node(i + 1), i) for i in range(70)]
    for page in pages:
        log.birth(page)
    log.commit()
    after, payload = pages[0].successor(node(80), 80, {5: 5})
    log.birth(after, frames.PAYLOAD_RANGES, payload, old=pages[0])
    log.commit()
    failures = 0
    while True:
        failures += 1
        replay = new_replay()
        fail_allocation(failures)
        try:
            log.replayed(replay)
        except MemoryError:
            continue
        break
    fail_allocation(0)
    assert failures > 75
    assert len(images_of(replay)) == 70
