"""The catalog: which structures there are, and where each has its root, at one epoch.

Immutable. A catalog is a tuple of small blocks (dicts), and the next epoch's catalog shares every block but those that
hold a changed name, so that a commit among thousands of trees copies one small block. Blocks are never changed after
the catalog that holds them exists; readers need no lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct

from crc32c import crc32c

from xtree.errors import CorruptionError

# One record: header, kind, name, state, zeros up to a multiple of 8. Frames hold changed entries, checkpoints all.
RECORD = Struct("<BBHIQ")  # op, bytes of kind, bytes of name, bytes of state, root
assert RECORD.size == 16
OP_SET = 1  # never renumber
OP_DROP = 2

MAX_NAME_BYTES = 1024
MAX_STATE_BYTES = 1 << 20
ENTRIES_PER_BLOCK = 16

_PADDING = [bytes(n) for n in range(8)]


class CatalogEntry:
    """One structure: its name, what kind it is, the NodeID of its root (0: none), and state that only it understands.

    Immutable but for `decoded`, where the structure may keep the decoded state; it is neither compared nor stored.
    """

    __slots__ = ("name", "kind", "root", "state", "decoded", "_name", "_kind")

    def __init__(self, name: str, kind: str, root: int, state: bytes, decoded: object = None) -> None:
        self._name = name.encode()
        self._kind = kind.encode()
        if not 1 <= len(self._name) <= MAX_NAME_BYTES:
            raise ValueError(f"a name has 1 to {MAX_NAME_BYTES} bytes of UTF-8, not {len(self._name)}")
        if not 1 <= len(self._kind) <= 255:
            raise ValueError(f"a kind has 1 to 255 bytes of UTF-8, not {len(self._kind)}")
        self.name = name
        self.kind = kind
        self._become(root, state, decoded)

    def followed_by(self, root: int, state: bytes, decoded: object = None) -> CatalogEntry:
        """The entry of the same name and kind with another root and state."""
        entry = CatalogEntry.__new__(CatalogEntry)
        entry._name = self._name
        entry._kind = self._kind
        entry.name = self.name
        entry.kind = self.kind
        entry._become(root, state, decoded)
        return entry

    def encode(self) -> bytes:
        """The record that sets this entry."""
        kind, name, state = self._kind, self._name, self.state
        record = RECORD.pack(OP_SET, len(kind), len(name), len(state), self.root) + kind + name + state
        return record + _PADDING[-len(record) % 8]

    def _become(self, root: int, state: bytes, decoded: object) -> None:
        if not 0 <= root < 1 << 64:
            raise ValueError(f"a root is a NodeID of 64 bits, not {root}")
        if len(state) > MAX_STATE_BYTES:
            raise ValueError(f"a state has up to {MAX_STATE_BYTES} bytes, not {len(state)}")
        self.root = root
        self.state = state
        self.decoded = decoded

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CatalogEntry):
            return NotImplemented
        return (self.name, self.kind, self.root, self.state) == (other.name, other.kind, other.root, other.state)

    def __hash__(self) -> int:
        return hash((self.name, self.kind, self.root, self.state))

    def __repr__(self) -> str:
        return f"CatalogEntry({self.name!r}, {self.kind!r}, root={self.root:#x}, state=<{len(self.state)} bytes>)"


Changes = Mapping[str, "CatalogEntry | None"]  # None drops the name


class Catalog:
    """name -> CatalogEntry, at one epoch."""

    __slots__ = ("_blocks", "_count")

    def __init__(self, entries: Mapping[str, CatalogEntry] | None = None) -> None:
        self._build(entries or {})

    def get(self, name: str) -> CatalogEntry | None:
        """The entry of a name, None when there is none."""
        return self._blocks[_block_of(name, len(self._blocks))].get(name)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(entry.name for entry in self)

    def with_changes(self, changes: Changes) -> Catalog:
        """The catalog after some entries were set (an entry) or dropped (None). Dropping what isn't there is fine."""
        before = self._blocks
        blocks = list(before)
        count = self._count
        for name, entry in changes.items():
            which = _block_of(name, len(blocks))
            block = blocks[which]
            if block is before[which]:
                block = blocks[which] = block.copy()
            count -= len(block)
            if entry is None:
                block.pop(name, None)
            elif entry.name != name:
                raise ValueError(f"entry {entry.name!r} can't be set under the name {name!r}")
            else:
                block[name] = entry
            count += len(block)
        after = Catalog.__new__(Catalog)
        if count > 2 * ENTRIES_PER_BLOCK * len(blocks):
            after._build({name: entry for block in blocks for name, entry in block.items()})
        else:
            after._blocks = tuple(blocks)
            after._count = count
        return after

    def encode(self) -> bytes:
        """All entries as records, sorted by name."""
        return b"".join([entry.encode() for entry in sorted(self, key=lambda entry: entry.name)])

    @classmethod
    def decode(cls, data: bytes, path: str = "catalog", offset: int = 0) -> Catalog:
        """The catalog that `encode` wrote. Raises CorruptionError with positions in `path`, counted from `offset`."""
        entries: dict[str, CatalogEntry] = {}
        for position, name, entry in _records(data, path, offset):
            if entry is None:
                raise CorruptionError(f"{path}: at offset {position}: expected an entry, found one dropped: {name!r}")
            if name in entries:
                raise CorruptionError(f"{path}: at offset {position}: expected every name once, found {name!r} again")
            entries[name] = entry
        return cls(entries)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[CatalogEntry]:
        for block in self._blocks:
            yield from block.values()

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Catalog):
            return NotImplemented
        return self._count == other._count and all(other.get(entry.name) == entry for entry in self)

    __hash__ = None  # type: ignore[assignment]

    def _build(self, entries: Mapping[str, CatalogEntry]) -> None:
        wanted = 1
        while wanted * ENTRIES_PER_BLOCK < len(entries):
            wanted *= 2
        blocks: list[dict[str, CatalogEntry]] = [{} for _ in range(wanted)]
        for name, entry in entries.items():
            blocks[_block_of(name, wanted)][name] = entry
        self._blocks: tuple[dict[str, CatalogEntry], ...] = tuple(blocks)
        self._count = len(entries)


def encode_changes(changes: Changes) -> bytes:
    """Changed entries as records, for a log frame."""
    return b"".join([_dropping(name) if entry is None else entry.encode() for name, entry in changes.items()])


def decode_changes(data: bytes, path: str = "catalog", offset: int = 0) -> dict[str, CatalogEntry | None]:
    """The changes that `encode_changes` wrote; of several for one name the last counts. Raises CorruptionError."""
    return {name: entry for _, name, entry in _records(data, path, offset)}


def _block_of(name: str, blocks: int) -> int:
    return crc32c(name.encode()) & (blocks - 1) if blocks > 1 else 0


def _dropping(name: str) -> bytes:
    """The record that drops the entry of a name."""
    label = name.encode()
    return RECORD.pack(OP_DROP, 0, len(label), 0, 0) + label + _PADDING[-len(label) % 8]


def _records(data: bytes, path: str, base: int) -> Iterator[tuple[int, str, CatalogEntry | None]]:
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


def _decode(
    data: bytes, at: int, op: int, kind_bytes: int, name_bytes: int, state_bytes: int, root: int
) -> tuple[str, CatalogEntry | None]:
    name_at = at + RECORD.size + kind_bytes
    state_at = name_at + name_bytes
    name = data[name_at:state_at].decode()
    if op == OP_SET:
        kind = data[at + RECORD.size : name_at].decode()
        return name, CatalogEntry(name, kind, root, data[state_at : state_at + state_bytes])
    if op == OP_DROP and name and kind_bytes == state_bytes == root == 0:
        return name, None
    raise ValueError(f"operation {op} on {name!r}")
