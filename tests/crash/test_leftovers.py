"""What fails, or is killed, before it is listed leaves no file; errors of the disk name the file that they are about.

Promises (What people touch):

- whatever fails on its way to being listed by the manifest leaves no file, at the latest after the next checkpoint or
  the next write after reopening:
  test_a_checkpoint_that_cannot_be_listed_goes_at_once,
  test_whatever_fails_nothing_unlisted_is_left_after_the_next_checkpoint_or_reopening.
- errors of the disk name the file, also past a limit of its size:
  test_every_call_by_descriptor_names_the_file_that_failed,
  test_a_file_that_may_not_grow_is_named_and_nothing_is_lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sys

import numpy as np
import pytest
from support.faulty_fs import FaultyFileSystem
from support.listed_files import unlisted
from support.text_pages import by_request, put, texts_of

import xtree
from xtree.persistence.files import filenames
from xtree.persistence.files.platform_fs import File
from xtree.persistence.opening import open_store


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["create", "pwritev", "replace"])
def test_a_checkpoint_that_cannot_be_listed_goes_at_once(tmp_path, call, number):
    fs = FaultyFileSystem()
    store = open_store(tmp_path / "index", config=by_request(), fs=fs)
    put(store, {"a": "1"})
    store.checkpoint()
    put(store, {"a": "2"})
    for _ in range(3):
        fs.fail(call, filenames.MANIFEST if call == "replace" else f"{filenames.MANIFEST}.tmp", number)
        with pytest.raises(OSError) as caught:
            store.checkpoint()
        fs.heal()
        assert caught.value.errno == number and caught.value.filename is not None
        assert not unlisted(tmp_path / "index") and store.state == "open"
        put(store, {"a": "3"})
    store.check()
    store.checkpoint()
    store.close()
    assert not unlisted(tmp_path / "index")


@pytest.mark.slow
def test_whatever_fails_nothing_unlisted_is_left_after_the_next_checkpoint_or_reopening(tmp_path, tally):
    nth, met = 0, True
    while met:
        nth += 1
        path = tmp_path / f"index-{nth}"
        fs = FaultyFileSystem()
        config = by_request(wal_rotate_bytes=32 << 10)
        store = open_store(path, config=config, fs=fs)
        put(store, {"a": "1"})
        store.close()
        store = open_store(path, config=config, fs=fs)
        calls = fs.calls
        fs.fail_nth(nth, errno.ENOSPC)
        with contextlib.suppress(OSError, xtree.StoreFailedError):
            for i in range(12):
                put(store, {f"b{i % 4}": str(i)}, size_class=i % 4)
                if i % 4 == 3:
                    store.checkpoint()
        met = fs.calls >= calls + nth
        fs.heal()
        if nth % 2 and store.state == "open":
            put(store, {"last": "one"})
            store.checkpoint()
            assert not unlisted(path), nth
        store.close()
        store = open_store(path, config=config)
        texts = texts_of(store)
        put(store, {"more": "after"})
        assert not unlisted(path), nth
        store.check()
        store.close()
        assert not unlisted(path) and texts["a"] == "1"
        tally("calls that failed, after which no file was left")


def test_every_call_by_descriptor_names_the_file_that_failed(tmp_path):
    path = str(tmp_path / "file")
    file = File(path, os.open(path, os.O_CREAT | os.O_WRONLY))
    file.pwrite(bytes(100), 0)
    reader = File(path, os.open(path, os.O_RDONLY))
    calls = {
        "pread": lambda: file.pread(10, 0),
        "map": lambda: file.map(10),
        "pwrite": lambda: reader.pwrite(b"x", 0),
        "pwritev": lambda: reader.pwritev([b"x"], 0),
        "write_zeros": lambda: reader.write_zeros(0, 10),
        "truncate": lambda: reader.truncate(5),
        "reserve": lambda: reader.reserve(1000),
        "fill": lambda: reader.fill(0, 10),
    }
    for name, call in calls.items():
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.filename == path and caught.value.errno in (errno.EBADF, errno.EACCES, errno.EINVAL), name
        assert repr(path) in str(caught.value)
    reader.close()
    os.close(file.fileno())
    for call in (file.size, file.sync):
        with pytest.raises(OSError) as caught:
            call()
        assert (caught.value.errno, caught.value.filename) == (errno.EBADF, path)
    file._fd = -1


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize("what", ["commit", "checkpoint", "close", "open"])
def test_a_file_that_may_not_grow_is_named_and_nothing_is_lost(tmp_path, what):
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python ignores it: an error, not the end of the process
    path, killed = tmp_path / "index", tmp_path / "killed"
    boxes = np.random.default_rng(2).random((4000, 2))
    tree = xtree.open(path, dims=2)
    tree.insert(1, (0, 0))
    shutil.copytree(path, killed)
    calls = {
        "commit": lambda: tree.insert_many(np.arange(4000), boxes),
        "checkpoint": tree.runtime.checkpoint,
        "close": tree.close,
        "open": lambda: xtree.open(killed),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4500, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            calls[what]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert str(killed if what == "open" else path) in str(caught.value.filename)
    tree.close()
    for left in (path, killed):
        with xtree.open(left) as tree:
            assert tree.items()[0].tolist() == [1]
            tree.check()
        assert not unlisted(left)
