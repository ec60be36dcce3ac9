"""The file system that simulates power losses leaves what machines leave: all that was synced, and any of the rest.

Promises (Nothing acknowledged is lost):

- simulated power losses leave all that was synced, and anything of the rest that a machine may leave:
  all of it.
"""

from __future__ import annotations

import mmap
import os
import sys

import pytest
from support.forgetful_fs import SECTORS, ForgetfulFileSystem, PowerLoss, write_image

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")

OLD, NEW = b"o" * 16384, b"n" * 16384
every_sector_size = pytest.mark.parametrize("sector_bytes", SECTORS)


@pytest.fixture
def fs(tmp_path):
    (tmp_path / "disk").mkdir()
    return ForgetfulFileSystem(tmp_path / "disk")


def path_of(fs, name: str) -> str:
    return os.path.join(fs.root, name)


def made(fs, name: str, content: bytes = b""):
    """A file that is on the disk, with its name."""
    file = fs.open(path_of(fs, name), "create")
    file.pwrite(content, 0)
    file.sync()
    fs.sync_directory(fs.root)
    return file


def after(fs, sector_bytes: int, seeds: int = 300) -> list[dict[str, bytes]]:
    state = fs.state()
    return [state.after(PowerLoss(seed, sector_bytes)) for seed in range(seeds)]


@every_sector_size
def test_what_was_synced_is_left_whatever_comes(fs, sector_bytes):
    made(fs, "a", OLD).close()
    other = made(fs, "b", OLD)
    other.pwrite(NEW, 0)
    fs.open(path_of(fs, "c"), "create").close()
    assert all(image["a"] == OLD for image in after(fs, sector_bytes))


@every_sector_size
def test_a_sector_that_was_written_is_left_new_old_or_as_garbage_and_only_small_ones_are_torn(fs, sector_bytes):
    file = made(fs, "a", OLD)
    file.pwrite(NEW[:100], 8192)
    lost = [image["a"] for image in after(fs, sector_bytes)]
    assert {content[:8192] + content[8192 + sector_bytes :] for content in lost} == {OLD[sector_bytes:]}
    sectors = {content[8192 : 8192 + sector_bytes] for content in lost}
    old, new = OLD[:sector_bytes], NEW[:100] + OLD[100:sector_bytes]
    torn = {sector for sector in sectors if set(sector) == {*b"on"} and sector not in (old, new)}
    assert {old, new, bytes(sector_bytes), b"\xff" * sector_bytes} < sectors
    assert bool(torn) == (sector_bytes == 512)
    assert sectors - torn - {old, new}


@every_sector_size
def test_a_sector_that_was_written_with_what_it_held_may_be_garbage(fs, sector_bytes):
    file = made(fs, "a", OLD)
    file.pwrite(OLD[:10], 4096)
    assert len({image["a"] for image in after(fs, sector_bytes)}) > 3


@every_sector_size
def test_what_was_written_through_a_mapping_counts_until_the_next_sync(fs, sector_bytes):
    file = made(fs, "a", OLD)
    with mmap.mmap(file.fileno(), len(OLD)) as mapping:
        mapping[4096:4100] = b"new!"
    lost = {image["a"][4096:4100] for image in after(fs, sector_bytes)}
    assert {b"oooo", b"new!", b"\xff\xff\xff\xff"} <= lost
    file.sync()
    assert {image["a"][4096:4100] for image in after(fs, sector_bytes)} == {b"new!"}


@every_sector_size
def test_a_size_survives_without_the_content_and_the_other_way_round(fs, sector_bytes):
    file = made(fs, "a", OLD[:4096])
    file.reserve(12288)
    file.pwrite(NEW[:4096], 4096)
    lost = [image["a"] for image in after(fs, sector_bytes)]
    assert {len(content) for content in lost} == {4096, 12288}
    assert {content[:4096] for content in lost} == {OLD[:4096]}
    assert {NEW[:512], bytes(512), b"\xff" * 512} <= {content[4096:4608] for content in lost if len(content) > 4096}


def test_what_was_cut_off_may_come_back(fs):
    file = made(fs, "a", OLD)
    file.truncate(512)
    assert {OLD, OLD[:512]} <= {image["a"] for image in after(fs, 512)}


def test_a_name_is_there_for_sure_once_its_directory_is_synced(fs):
    file = fs.open(path_of(fs, "a"), "create")
    file.pwrite(OLD, 0)
    file.sync()
    assert {image.get("a") for image in after(fs, 512)} == {None, OLD}
    fs.sync_directory(fs.root)
    assert {image.get("a") for image in after(fs, 512)} == {OLD}
    fs.unlink(path_of(fs, "a"))
    assert {image.get("a") for image in after(fs, 512)} == {None, OLD}


def test_a_name_that_was_replaced_leads_to_the_old_file_or_the_new_one(fs):
    made(fs, "a", OLD).close()
    new = fs.open(path_of(fs, "new"), "create")
    new.pwrite(NEW, 0)
    new.sync()
    fs.replace(path_of(fs, "new"), path_of(fs, "a"))
    assert {(image["a"], image.get("new")) for image in after(fs, 512)} == {(OLD, None), (OLD, NEW), (NEW, None)}


def test_changes_of_different_names_survive_in_any_order_those_of_one_name_in_theirs(fs):
    made(fs, "a", OLD).close()
    made(fs, "b", OLD).close()
    fs.unlink(path_of(fs, "a"))
    fs.unlink(path_of(fs, "b"))
    fs.open(path_of(fs, "b"), "create").close()
    fs.replace(path_of(fs, "b"), path_of(fs, "c"))
    lost = {tuple(sorted((name, len(content)) for name, content in image.items())) for image in after(fs, 512, 2000)}
    assert len(lost) == 8
    old, a = len(OLD), (("a", len(OLD)),)
    for rest in ((("b", old),), (), (("b", 0),), (("c", 0),)):
        assert rest in lost and (*a, *rest) in lost


def test_a_directory_is_lost_with_all_that_is_in_it(fs):
    fs.mkdir(path_of(fs, "inner"))
    inner = fs.open(path_of(fs, "inner/a"), "create")
    inner.sync()
    fs.sync_directory(path_of(fs, "inner"))
    assert {tuple(image) for image in after(fs, 512)} == {(), ("inner", "inner/a")}


def test_a_kill_loses_nothing_and_a_power_loss_after_it_what_was_not_synced_before(fs, tmp_path):
    made(fs, "a", OLD).close()
    fs.open(path_of(fs, "a"), "rw").pwrite(NEW, 0)
    fs.open(path_of(fs, "b"), "create").close()
    state = fs.state()
    assert state.after_kill() == {"a": NEW, "b": b""}
    again = ForgetfulFileSystem.after_kill(state, tmp_path / "again")
    assert again.state().after_kill() == state.after_kill()
    assert {OLD, NEW} < {image["a"] for image in after(again, 512)}
    assert {image.get("b") for image in after(again, 512)} == {None, b""}
    again.open(path_of(again, "a"), "rw").sync()
    assert {image["a"] for image in after(again, 512)} == {NEW}


def test_moments_come_before_calls(fs):
    seen = []
    fs.observe = lambda what: seen.append((what, fs.state().after_kill().get("a")))
    made(fs, "a", OLD).close()
    assert seen == [
        ("create a", None), ("pwrite a", b""), ("sync a", OLD), ("sync directory ", OLD),
    ]  # fmt: skip


def test_the_same_seed_leaves_the_same(fs, tmp_path):
    made(fs, "a", OLD).pwrite(NEW, 0)
    images = [fs.state().after(PowerLoss(seed, 512)) for seed in (7, 7, 8)]
    assert images[0] == images[1] != images[2]
    write_image(images[0], tmp_path / "left")
    assert (tmp_path / "left" / "a").read_bytes() == images[0]["a"]
