"""The 4 KiB page that begins every binary file of an index (and is all of a superblock copy).

    offset  size  name    meaning
    0       8     magic   which kind of file
    8       4     crc     CRC32C of the 4096 bytes with this field zero
    12      2     format  version of the file's format
    14      2     -       zero
    16      16    uuid    of the index
    32      -     body    the file's own fields, then zeros

The first 32 bytes are the same in all versions of all formats, so that a reader can tell another version from damage.
"""

from __future__ import annotations

from struct import Struct

from crc32c import crc32c

from xtree.errors import CorruptionError, FormatVersionError

HEADER_BYTES = 4096
PREFIX = Struct("<8sIHH16s")
assert PREFIX.size == 32
CRC_OFFSET = 8
UUID_BYTES = 16
_CRC = Struct("<I")


def pack_header(magic: bytes, file_format: int, uuid: bytes, body: bytes) -> bytes:
    """The page with its CRC."""
    if len(uuid) != UUID_BYTES:
        raise ValueError(f"a UUID has {UUID_BYTES} bytes, not {len(uuid)}")
    page = bytearray(HEADER_BYTES)
    PREFIX.pack_into(page, 0, magic, 0, file_format, 0, uuid)
    page[PREFIX.size : PREFIX.size + len(body)] = body
    _CRC.pack_into(page, CRC_OFFSET, crc32c(page))
    return bytes(page)


def header_crc(page: bytes) -> int:
    """The CRC that a page carries."""
    crc: int = _CRC.unpack_from(page, CRC_OFFSET)[0]
    return crc


def unpack_header(
    page: bytes, magic: bytes, file_format: int, body: Struct, path: str, uuid: bytes | None = None, offset: int = 0
) -> tuple[bytes, tuple[int, ...]]:
    """(uuid, fields of the body) of a page that was read at `offset` of `path`.

    Raises CorruptionError, or FormatVersionError for a whole page of another version.
    """
    if len(page) != HEADER_BYTES:
        raise CorruptionError(
            f"{path}: at offset {offset}: expected a header of {HEADER_BYTES} bytes, found {len(page)}"
        )
    found_magic, found_crc, found_format, _, found_uuid = PREFIX.unpack_from(page, 0)
    if found_magic != magic:
        raise CorruptionError(f"{path}: at offset {offset}: expected the magic {magic!r}, found {found_magic!r}")
    zeroed = bytearray(page)
    _CRC.pack_into(zeroed, CRC_OFFSET, 0)
    crc = crc32c(zeroed)
    if found_crc != crc:
        raise CorruptionError(f"{path}: at offset {offset}: expected the CRC {crc:#010x}, found {found_crc:#010x}")
    if found_format != file_format:
        raise FormatVersionError(f"{path}: expected format version {file_format}, found {found_format}")
    if uuid is not None and found_uuid != uuid:
        raise CorruptionError(f"{path}: expected a file of index {uuid.hex()}, found one of {found_uuid.hex()}")
    return found_uuid, body.unpack_from(page, PREFIX.size)
