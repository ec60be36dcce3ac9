"""File names: every name that the code makes is parsed, and no other name is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtree.persistence.files import filenames

numbers = st.integers(1, filenames.MAX_NUMBER)


@given(numbers, st.integers(0, filenames.SIZE_CLASSES - 1))
def test_names_are_parsed_back(number, size_class):
    assert filenames.parse_checkpoint(filenames.checkpoint_name(number)) == number
    assert filenames.parse_log(filenames.log_name(number)) == number
    assert filenames.parse_data(filenames.data_name(size_class, number)) == (size_class, number)


def test_names_are_spelled_as_documented():
    assert filenames.checkpoint_name(7) == "checkpoint-0000000007.ckpt"
    assert filenames.log_name(7) == "wal-0000000007.log"
    assert filenames.data_name(3, 7) == "data-c3-0000000007.xd"
    assert filenames.temporary_name("manifest.json") == "manifest.json.tmp"


@pytest.mark.parametrize("number", [0, -1, filenames.MAX_NUMBER + 1])
def test_numbers_out_of_range_have_no_name(number):
    for spell in (filenames.checkpoint_name, filenames.log_name, lambda n: filenames.data_name(0, n)):
        with pytest.raises(ValueError, match="file number"):
            spell(number)


def test_size_classes_out_of_range_have_no_name():
    for size_class in (-1, filenames.SIZE_CLASSES):
        with pytest.raises(ValueError, match="size class"):
            filenames.data_name(size_class, 1)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "wal-1.log",
        "wal-00000000001.log",
        "wal-0000000000.log",
        "wal-9999999999.log",
        "wal-000000000x.log",
        "wal-\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.log",
        "WAL-0000000001.log",
        "./wal-0000000001.log",
        "../wal-0000000001.log",
        "/wal-0000000001.log",
        "sub/wal-0000000001.log",
        "wal-0000000001.log\n",
        "wal-0000000001.log\0",
        "wal-0000000001.log.tmp",
        "LOCK.tmp",
        "superblock.bin.tmp",
        "manifest.json.tmp.tmp",
        "data-c7-0000000001.xd",
        "data-c-0000000001.xd",
        "data-c0-0000000001.xd.tmp",
        "checkpoint-0000000001.ckpt/",
        "manifest.json ",
        "readme.txt",
    ],
)
def test_other_strings_are_not_ours(name):
    assert not filenames.is_ours(name)
    assert filenames.parse_log(name) is None
    assert filenames.parse_checkpoint(name) is None
    assert filenames.parse_data(name) is None


def test_all_files_of_an_index_are_ours():
    names = [
        filenames.LOCK,
        filenames.SUPERBLOCK,
        filenames.MANIFEST,
        filenames.checkpoint_name(1),
        filenames.log_name(2),
        filenames.data_name(6, 3),
        filenames.temporary_name(filenames.MANIFEST),
        filenames.temporary_name(filenames.checkpoint_name(4)),
    ]
    assert all(filenames.is_ours(name) for name in names)
    assert [name for name in names if filenames.is_temporary(name)] == names[-2:]


@given(st.text(max_size=40))
def test_any_text_is_parsed_without_an_error(name):
    if filenames.is_ours(name):
        assert "/" not in name and "\\" not in name and "\0" not in name
