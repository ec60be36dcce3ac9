"""docs/format.md says what the code does: every table against the constants.

Promises (Nothing acknowledged is lost):

- files are what `docs/format.md` says:
  all of it.
"""

import itertools
import re
from struct import Struct, calcsize

import pytest
from support.places import ROOT

from xtree.persistence.files import checkpoint, data_files, file_header, frame, manifest, superblock
from xtree.persistence.store import catalog

TEXT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
PREFIX_BYTES = file_header.PREFIX.size


def fields_of_struct(struct, start=0):
    """(offset, size) of each field of a struct.Struct; a run of padding is one field."""
    found, offset = [], start
    for count, code in re.findall(r"(\d*)([a-zA-Z])", struct.format):
        pieces = 1 if code in "sx" else int(count or 1)
        size = calcsize(f"<{count}{code}") // pieces
        for _ in range(pieces):
            found.append((offset, size))
            offset += size
    return found


def fields_of_dtype(dtype):
    """(offset, size, name) of each field of a numpy dtype."""
    return [(dtype.fields[name][1], dtype.fields[name][0].itemsize, name) for name in dtype.names]


def fields_of_c(path, name):
    """(offset, size, name) of each field of a packed-by-nature C struct in Cython source."""
    source = (ROOT / path).read_text(encoding="utf-8")
    body = re.search(rf"cdef struct {name}:[^\n]*\n((?: +[^\n]*\n)+)", source).group(1)
    sizes = {"uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "uint64_t": 8, "int64_t": 8, "NodeID": 8, "double": 8}
    found, offset = [], 0
    for kind, field, count in re.findall(r"^ +(\w+) (\w+)(?:\[(\d+)\])?", body, re.MULTILINE):
        assert offset % sizes[kind] == 0, f"the compiler would pad before {field}"
        size = sizes[kind] * int(count or 1)
        found.append((offset, size, field))
        offset += size
    return found


def constant_of_c(path, name):
    source = (ROOT / path).read_text(encoding="utf-8")
    return int(re.search(rf"^ +{name} = (\w+)", source, re.MULTILINE).group(1), 0)


def section(title):
    """The text under a heading, up to the next."""
    return re.search(rf"^#+ {re.escape(title)}(?: \([^\n]*)?\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL).group(1)


def layout(title):
    """(offset, size, name) of each row of a section's table of fields."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section(title), re.MULTILINE)
    return [(int(offset), int(size), name) for offset, size, name in rows]


def stated_bytes(title):
    return int(re.search(rf"^#+ {re.escape(title)} \((?:\w+, )?(\d+) bytes\)", TEXT, re.MULTILINE).group(1))


def numbers(title):
    """name -> number of a table with that first heading."""
    head = rf"^\| {re.escape(title)} \| number \|\n\|[-:|]+\|\n"
    table = re.search(head + r"((?:\|[^\n]*\n)+)", TEXT, re.MULTILINE).group(1)
    return {name: int(number) for name, number in re.findall(r"^\| (\w+) \| (\d+) \|", table, re.MULTILINE)}


STRUCTS = {
    "Superblock": (superblock.BODY, PREFIX_BYTES),
    "Log": (frame.LOG_BODY, PREFIX_BYTES),
    "Frame header": (frame.FRAME_HEADER, 0),
    "Link": (frame.LINK, 0),
    "Catalog record": (catalog.RECORD, 0),
    "Checkpoint": (
        Struct(checkpoint.BODY.format + f"{frame.LINK_BYTES}s{checkpoint.COUNTS.size}s"),
        PREFIX_BYTES,
    ),
    "Range": (Struct("<HH"), 0),
    "Data file entry": (checkpoint.DATA_FILE, 0),
    "Footer": (checkpoint.FOOTER, 0),
    "Data file": (data_files.BODY, PREFIX_BYTES),
    "File header": (Struct(file_header.PREFIX.format + f"{file_header.HEADER_BYTES - PREFIX_BYTES}s"), 0),
}
NAMED = {
    "Delta": fields_of_dtype(frame.DELTA),
    "Row": fields_of_dtype(checkpoint.ROW),
    "Page prefix": fields_of_c("xtree/persistence/pages/page.pxd", "PagePrefix"),
    "Bucket header": fields_of_c("xtree/algorithms/bucket.pxd", "Bucket"),
    "State of an X-tree": fields_of_c("xtree/algorithms/tree_state.pyx", "StateHeader"),
}


@pytest.mark.parametrize("title", STRUCTS)
def test_a_table_has_the_offsets_and_sizes_of_its_struct(title):
    struct, start = STRUCTS[title]
    assert [(offset, size) for offset, size, _ in layout(title)] == fields_of_struct(struct, start)
    assert stated_bytes(title) == struct.size


@pytest.mark.parametrize("title", NAMED)
def test_a_table_has_the_fields_of_its_record(title):
    assert layout(title) == NAMED[title]
    assert stated_bytes(title) == sum(size for _, size, _ in NAMED[title])


def test_every_table_of_fields_is_compared_and_without_gaps():
    titles = re.findall(r"^#+ ([^(\n]+?)(?: \([^)]*\))?$", TEXT, re.MULTILINE)
    with_fields = {title for title in titles if layout(title)}
    assert with_fields == STRUCTS.keys() | NAMED.keys()
    for title in with_fields:
        rows = layout(title)
        assert all(a[0] + a[1] == b[0] for a, b in itertools.pairwise(rows)), title


def test_the_delta_of_the_commit_path_is_the_one_of_recovery():
    assert fields_of_c("xtree/persistence/files/frame_layout.pxd", "Delta") == NAMED["Delta"]
    assert fields_of_c("xtree/persistence/files/frame_layout.pxd", "Range") == layout("Range")


def test_the_frame_header_that_is_followed_is_the_one_that_is_written():
    fields = fields_of_c("xtree/persistence/files/frame_layout.pxd", "FrameHeader")
    assert fields == layout("Frame header")


def test_the_row_of_the_object_table_is_the_one_of_checkpoints():
    assert fields_of_c("xtree/persistence/pages/stored_row.pxd", "StoredRow") == NAMED["Row"]
    assert 1 << constant_of_c("xtree/persistence/pages/stored_row.pxd", "OFFSET_SHIFT") == checkpoint.OFFSET_UNIT
    assert "of the slot, in units of 4096 bytes" in section("Row") and checkpoint.OFFSET_UNIT == 4096


def test_numbers_that_reach_the_disk_are_the_documented_ones():
    page, bucket = "xtree/persistence/pages/page.pxd", "xtree/algorithms/bucket.pxd"
    layout = "xtree/persistence/files/frame_layout.pxd"
    assert numbers("mode") == superblock.MODES
    assert numbers("kind of frame") == {"link": frame.FRAME_LINK, "group": frame.FRAME_GROUP}
    assert numbers("op") == {"birth": frame.OP_BIRTH, "retire": frame.OP_RETIRE, "relocate": frame.OP_RELOCATE}
    assert numbers("payload_form") == {
        "none": frame.PAYLOAD_NONE,
        "whole": frame.PAYLOAD_WHOLE,
        "ranges": frame.PAYLOAD_RANGES,
    }
    for name in ("OP_BIRTH", "OP_RETIRE", "OP_RELOCATE", "PAYLOAD_NONE", "PAYLOAD_WHOLE", "PAYLOAD_RANGES"):
        assert constant_of_c(layout, name) == getattr(frame, name)
    assert constant_of_c(layout, "FRAME_FORMAT") == frame.FRAME_FORMAT
    assert constant_of_c(layout, "FRAME_MAGIC") == int.from_bytes(frame.FRAME_MAGIC, "little")
    assert constant_of_c(layout, "MODE_STRICT") == superblock.MODES["strict"]
    assert constant_of_c(layout, "LAST_MODE") == max(superblock.MODES.values())
    assert numbers("catalog op") == {"set": catalog.OP_SET, "drop": catalog.OP_DROP}
    assert numbers("kind of page") == {
        "leaf": constant_of_c(bucket, "KIND_LEAF"),
        "directory": constant_of_c(bucket, "KIND_DIRECTORY"),
    }
    assert constant_of_c(bucket, "HEADER_BYTES") == stated_bytes("Bucket header")
    assert constant_of_c(page, "PAGE_MAGIC") == int.from_bytes(b"XTPG", "little")


def test_magics_and_formats_are_the_documented_ones():
    rows = re.findall(r"^\| ([\w ]+) \| `(\S{8,9})` \| (\d+) \|$", TEXT, re.MULTILINE)
    found = {name: (magic.replace("\\0", "\0").encode(), int(version)) for name, magic, version in rows}
    assert found == {
        "superblock": (superblock.MAGIC, superblock.FORMAT),
        "log": (frame.LOG_MAGIC, frame.LOG_FORMAT),
        "checkpoint": (checkpoint.MAGIC, checkpoint.FORMAT),
        "data file": (data_files.MAGIC, data_files.FORMAT),
    }
    for magic in (frame.FRAME_MAGIC, checkpoint.FOOTER_MAGIC, b"XTPG"):
        assert f"`{magic.decode()}`" in TEXT
    assert manifest.FORMAT == constant_of_c("xtree/persistence/pages/page.pxd", "PAGE_FORMAT") == 1
    assert f"of the frame: {frame.FRAME_FORMAT} " in TEXT
    assert constant_of_c("xtree/persistence/pages/node_id.pxd", "MAX_SHARDS") == checkpoint.SHARDS == 64


def test_the_keys_of_the_manifest_are_the_documented_ones():
    keys = re.findall(r"^\| `(\w+)` \|", section("Manifest"), re.MULTILINE)
    assert keys == list(manifest.Manifest.__dataclass_fields__)
    for record in (manifest.CheckpointEntry, manifest.LogEntry, manifest.ClosedLog, manifest.DataFileEntry):
        for field in record.__dataclass_fields__:
            assert f"`{field}`" in section("Manifest")
