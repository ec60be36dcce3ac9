"""The catalog: which structures there are, and where each has its root, at one epoch.

Immutable. A catalog is a tuple of small blocks (dicts), and the next epoch's catalog shares every block but those that
hold a changed name, so that a commit among thousands of trees copies one small block. Blocks are never changed after
the catalog that holds them exists; readers need no lock.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from xtree.persistence.pages.page_checksum cimport crc32c

from struct import Struct

from xtree.errors import CorruptionError

cdef enum:
    SET = 1                         # what a record does; never renumber
    DROP = 2
    MOST_NAME_BYTES = 1024
    MOST_KIND_BYTES = 255
    MOST_STATE_BYTES = 1048576
    BLOCK_ENTRIES = 16              # of a new block

# One record: header, kind, name, state, zeros up to a multiple of 8. Frames hold changed entries, checkpoints all.
cdef struct RecordHeader:
    uint8_t op
    uint8_t kind_bytes
    uint16_t name_bytes
    uint32_t state_bytes
    uint64_t root

RECORD = Struct("<BBHIQ")
assert RECORD.size == 16 and sizeof(RecordHeader) == 16
OP_SET, OP_DROP = SET, DROP
MAX_NAME_BYTES, MAX_STATE_BYTES = MOST_NAME_BYTES, MOST_STATE_BYTES
ENTRIES_PER_BLOCK = BLOCK_ENTRIES


cdef bytes record_of(int op, bytes kind, bytes name, bytes state, uint64_t root):
    cdef Py_ssize_t kind_bytes = PyBytes_GET_SIZE(kind), name_bytes = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t state_bytes = PyBytes_GET_SIZE(state)
    cdef Py_ssize_t used = sizeof(RecordHeader) + kind_bytes + name_bytes + state_bytes
    cdef bytes record = PyBytes_FromStringAndSize(NULL, used + (-used & 7))
    cdef char *out = PyBytes_AS_STRING(record)
    cdef RecordHeader *header = <RecordHeader *>out
    header.op, header.kind_bytes, header.name_bytes = op, kind_bytes, name_bytes
    header.state_bytes, header.root = state_bytes, root
    out += sizeof(RecordHeader)
    memcpy(out, PyBytes_AS_STRING(kind), kind_bytes)
    out += kind_bytes
    memcpy(out, PyBytes_AS_STRING(name), name_bytes)
    out += name_bytes
    memcpy(out, PyBytes_AS_STRING(state), state_bytes)
    memset(out + state_bytes, 0, -used & 7)
    return record


@cython.final
cdef class CatalogEntry:
    """One structure: its name, what kind it is, the NodeID of its root (0: none), and state that only it understands.

    Immutable but for `decoded`, where the structure may keep the decoded state; it is neither compared nor stored.
    """

    def __init__(self, str name not None, str kind not None, root, bytes state not None, decoded=None):
        self.encoded_name = name.encode()
        self.encoded_kind = kind.encode()
        if not 1 <= len(self.encoded_name) <= MOST_NAME_BYTES:
            raise ValueError(f"a name has 1 to {MOST_NAME_BYTES} bytes of UTF-8, not {len(self.encoded_name)}")
        if not 1 <= len(self.encoded_kind) <= MOST_KIND_BYTES:
            raise ValueError(f"a kind has 1 to {MOST_KIND_BYTES} bytes of UTF-8, not {len(self.encoded_kind)}")
        self.name = name
        self.kind = kind
        self.become(root, state, decoded)

    cpdef CatalogEntry followed_by(self, root, bytes state, decoded=None):
        """The entry of the same name and kind with another root and state."""
        cdef CatalogEntry entry = CatalogEntry.__new__(CatalogEntry)
        entry.encoded_name, entry.encoded_kind = self.encoded_name, self.encoded_kind
        entry.name, entry.kind = self.name, self.kind
        entry.become(root, state, decoded)
        return entry

    def encode(self):
        """The record that sets this entry."""
        return record_of(SET, self.encoded_kind, self.encoded_name, self.state, self.root)

    cdef int become(self, root, bytes state, decoded) except -1:
        if not 0 <= root < 1 << 64:
            raise ValueError(f"a root is a NodeID of 64 bits, not {root}")
        if len(state) > MOST_STATE_BYTES:
            raise ValueError(f"a state has up to {MOST_STATE_BYTES} bytes, not {len(state)}")
        self.root = root
        self.state = state
        self.decoded = decoded
        return 0

    def __eq__(self, other):
        cdef CatalogEntry entry
        if not isinstance(other, CatalogEntry):
            return NotImplemented
        entry = other
        return (self.name == entry.name and self.kind == entry.kind and self.root == entry.root
                and self.state == entry.state)

    def __hash__(self):
        return hash((self.name, self.kind, self.root, self.state))

    def __repr__(self):
        return f"CatalogEntry({self.name!r}, {self.kind!r}, root={self.root:#x}, state=<{len(self.state)} bytes>)"


@cython.final
cdef class Catalog:
    """name -> CatalogEntry, at one epoch."""

    def __init__(self, entries=None):
        self.build(entries or {})

    cpdef CatalogEntry get(self, str name):
        """The entry of a name, None when there is none."""
        return (<dict>self.blocks[block_of(name, len(self.blocks))]).get(name)

    def names(self):
        """All names, sorted."""
        return sorted([entry.name for entry in self])

    cpdef Catalog with_changes(self, dict changes):
        """The catalog after some entries were set (an entry) or dropped (None). Dropping what isn't there is fine."""
        cdef list blocks = list(self.blocks)
        cdef Py_ssize_t count = self.count, which
        cdef dict block
        cdef Catalog after
        for name, entry in changes.items():
            which = block_of(name, len(blocks))
            block = blocks[which]
            if block is <dict>self.blocks[which]:
                block = blocks[which] = block.copy()
            count -= len(block)
            if entry is None:
                block.pop(name, None)
            elif (<CatalogEntry?>entry).name != name:
                raise ValueError(f"entry {entry.name!r} can't be set under the name {name!r}")
            else:
                block[name] = entry
            count += len(block)
        after = Catalog.__new__(Catalog)
        if count > 2 * BLOCK_ENTRIES * len(blocks):
            after.build({name: entry for block in blocks for name, entry in block.items()})
        else:
            after.blocks = tuple(blocks)
            after.count = count
        return after

    def encode(self):
        """All entries as records, sorted by name."""
        return b"".join([entry.encode() for entry in sorted(self, key=lambda entry: entry.name)])

    @staticmethod
    def decode(data, path="catalog", offset=0):
        """The catalog that `encode` wrote. Raises CorruptionError with positions in `path`, counted from `offset`."""
        entries = {}
        for position, name, entry in _records(data, path, offset):
            if entry is None:
                raise CorruptionError(f"{path}: at offset {position}: expected an entry, found one dropped: {name!r}")
            if name in entries:
                raise CorruptionError(f"{path}: at offset {position}: expected every name once, found {name!r} again")
            entries[name] = entry
        return Catalog(entries)

    def __len__(self):
        return self.count

    def __iter__(self):
        for block in self.blocks:
            yield from block.values()

    def __contains__(self, str name):
        return self.get(name) is not None

    def __eq__(self, other):
        if not isinstance(other, Catalog):
            return NotImplemented
        return len(self) == len(other) and all([other.get(entry.name) == entry for entry in self])

    __hash__ = None

    cdef int build(self, entries) except -1:
        cdef Py_ssize_t wanted = 1
        while wanted * BLOCK_ENTRIES < len(entries):
            wanted *= 2
        blocks = [{} for _ in range(wanted)]
        for name, entry in entries.items():
            blocks[block_of(name, wanted)][name] = entry
        self.blocks = tuple(blocks)
        self.count = len(entries)
        return 0


cdef bytes encoded(dict changes):
    """Changed entries as records, for a log frame."""
    return b"".join([record_of(DROP, b"", name.encode(), b"", 0) if entry is None else entry.encode()
                     for name, entry in changes.items()])


def encode_changes(dict changes not None):
    """Changed entries as records, for a log frame."""
    return encoded(changes)


cdef Py_ssize_t block_of(str name, Py_ssize_t blocks) except -1:
    cdef bytes label
    if blocks == 1:
        return 0
    label = name.encode()
    return crc32c(PyBytes_AS_STRING(label), PyBytes_GET_SIZE(label), 0) & (blocks - 1)


def decode_changes(data, path="catalog", offset=0):
    """The changes that `encode_changes` wrote; of several for one name the last counts. Raises CorruptionError."""
    return {name: entry for _, name, entry in _records(data, path, offset)}


def _records(data, path, base):
    """(offset, name, entry or None) of each record; every length is checked against the bytes at hand."""
    data = bytes(data)
    at = 0
    while at < len(data):
        left = len(data) - at - RECORD.size
        if left < 0:
            raise CorruptionError(
                f"{path}: at offset {base + at}: expected a catalog record of {RECORD.size} bytes, "
                f"found {len(data) - at}"
            )
        op, kind_bytes, name_bytes, state_bytes, root = RECORD.unpack_from(data, at)
        body = kind_bytes + name_bytes + state_bytes
        if body + -body % 8 > left:
            raise CorruptionError(
                f"{path}: at offset {base + at}: expected a catalog record within {left} bytes, found one of {body}"
            )
        try:
            name, entry = _decode(data, at, op, kind_bytes, name_bytes, state_bytes, root)
        except ValueError as error:
            raise CorruptionError(f"{path}: at offset {base + at}: expected a catalog record, found {error}") from None
        yield base + at, name, entry
        at += RECORD.size + body + -body % 8


def _decode(data, at, op, kind_bytes, name_bytes, state_bytes, root):
    name_at = at + RECORD.size + kind_bytes
    state_at = name_at + name_bytes
    name = data[name_at:state_at].decode()
    if op == OP_SET:
        kind = data[at + RECORD.size : name_at].decode()
        return name, CatalogEntry(name, kind, root, data[state_at : state_at + state_bytes])
    if op == OP_DROP and name and kind_bytes == state_bytes == root == 0:
        return name, None
    raise ValueError(f"operation {op} on {name!r}")
