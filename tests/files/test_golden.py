"""Files made earlier are still read as long as the formats are the same; later formats are told from damage.

Promises (Nothing acknowledged is lost):

- files made earlier are read, as long as the formats are the same; a later version is told from damage:
  test_golden_files_are_read_and_taken_on, test_there_are_golden_files_of_the_formats_of_now,
  test_a_version_one_higher_is_told_from_damage.
"""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from pathlib import Path

import pytest
from support.accidental_mutants import pages_in_use
from support.forged_files import (
    checkpoints_of,
    data_files_of,
    frames_of,
    logs_of,
    manifest_with,
    replaced,
    seal_checkpoint,
    seal_log,
    sealed_header,
    with_page,
)
from support.places import TESTS
from support.sample_indexes import lay_out, read_files

import xtree
from xtree.errors import FormatVersionError
from xtree.persistence.files import filenames
from xtree.persistence.files.file_header import HEADER_BYTES

GOLDEN = TESTS / "golden"


def load_maker():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()
ARCHIVES = sorted(GOLDEN.glob("*/*.tar.xz"))


def test_there_are_golden_files_of_the_formats_of_now(tmp_path):
    maker.make(tmp_path / "index", killed=True)
    versions = maker.versions_of(tmp_path / "index")
    found = sorted(archive.name for archive in ARCHIVES if archive.parent.name == versions)
    assert found == ["closed.tar.xz", "killed.tar.xz"], f"python tests/golden/make_golden.py makes those of {versions}"


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.name)
def test_golden_files_are_read_and_taken_on(tmp_path, archive):
    expected = json.loads(archive.with_name(archive.name.replace(".tar.xz", ".json")).read_text())
    path = tmp_path / "index"
    maker.unpack(archive, path)
    assert maker.contents(path) == expected
    with xtree.Runtime(path) as runtime:
        runtime.tree("flat").insert(10_000, (1, 2, 3, 4))
    expected["flat"].append([10_000, 1, 2, 3, 4])
    assert maker.contents(path) == expected


def test_golden_files_hold_every_kind_of_file(tmp_path):
    for archive in ARCHIVES:
        maker.unpack(archive, tmp_path / archive.name)
        files = read_files(tmp_path / archive.name)
        assert {filenames.SUPERBLOCK, filenames.MANIFEST} <= files.keys()
        assert checkpoints_of(files) and data_files_of(files)
        assert bool(logs_of(files)) == archive.name.startswith("killed")


def bumped(data: bytes, at: int) -> bytes:
    """The bytes with the version at an offset raised by one."""
    return replaced(data, at, struct.pack("<H", struct.unpack_from("<H", data, at)[0] + 1))


def newer_superblock(files):
    data = files[filenames.SUPERBLOCK]
    return {filenames.SUPERBLOCK: sealed_header(bumped(data, HEADER_BYTES + 12), HEADER_BYTES)}


def newer_manifest(files):
    head, body = files[filenames.MANIFEST].split(b"\n", 1)
    return {filenames.MANIFEST: manifest_with(body[:-2], int(re.search(rb'"format": (\d+)', head)[1]) + 1)}


def newer_checkpoint(files):
    name = checkpoints_of(files)[-1]
    return seal_checkpoint(files, name, bumped(files[name], 12))


def newer_log(files):
    name = last_log(files)
    return seal_log(files, name, bumped(files[name], 12), frames_of(files[name]))


def newer_frame(files):
    name = last_log(files)
    frames = frames_of(files[name])
    return seal_log(files, name, bumped(files[name], frames[-1][0] + 46), frames)


def newer_data_file(files):
    name = data_files_of(files)[0]
    return {name: sealed_header(bumped(files[name], 12))}


def newer_page(files):
    name, offset, size = pages_in_use(files)[0]
    return with_page(files, name, offset, bumped(files[name][offset:offset + size], 18))


def newer_tree(files):
    name = checkpoints_of(files)[-1]
    at = files[name].index(b"xtreeflat") + len(b"xtreeflat")
    return seal_checkpoint(files, name, bumped(files[name], at))


def last_log(files):
    return [name for name in logs_of(files) if len(frames_of(files[name])) > 1][-1]


NEWER = {
    "superblock.bin": newer_superblock,
    "manifest.json": newer_manifest,
    "checkpoint-": newer_checkpoint,
    "wal-": newer_log,
    "frame": newer_frame,
    "data-": newer_data_file,
    "page": newer_page,
    "tree state": newer_tree,
}


@pytest.mark.parametrize("what", NEWER)
@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_version_one_higher_is_told_from_damage(tmp_path, what, mode):
    log = what in ("wal-", "frame")
    made = tmp_path / "made"
    maker.make(made, killed=log)
    files = read_files(made)
    changes = NEWER[what](files)
    lay_out(tmp_path / "index", {**files, **changes})
    with pytest.raises(FormatVersionError, match=what) as caught:
        maker.contents(tmp_path / "index") if mode == "r" else open_and_read(tmp_path / "index")
    said = {int(number) for number in re.findall(r"\b[0-9]\b", str(caught.value))}
    assert any(version + 1 in said for version in said), f"both versions: {caught.value}"
    for name, data in {**files, **changes}.items():
        assert (tmp_path / "index" / name).read_bytes() == data


def open_and_read(path: Path) -> None:
    """Reads everything from an index that is open for writing, and changes nothing."""
    with xtree.Runtime(path) as runtime:
        runtime.check()
