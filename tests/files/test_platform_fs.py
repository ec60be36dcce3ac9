"""The file system layer: whole reads and writes, clean failures, locks that stay in the right hands."""

import errno
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from xtree.errors import LockedError
from xtree.persistence.base import crash_points
from xtree.persistence.files import platform_fs
from xtree.persistence.files.commit_calls import AVAILABLE
from xtree.persistence.files.platform_fs import File, FileSystem, SyncFailedError

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture
def fs():
    return FileSystem()


@pytest.fixture
def file(fs, tmp_path):
    made = fs.open(tmp_path / "file", "create")
    yield made
    made.close()


def test_what_is_written_is_read_back(file):
    file.pwrite(b"hello", 3)
    file.pwritev([b"a", bytearray(b"bc"), memoryview(b"def"), b""], 10)
    assert file.pread(100, 0) == b"\0\0\0hello\0\0abcdef"
    assert file.pread(3, 5) == b"llo"
    assert file.pread(5, 100) == b""
    assert file.size() == 16


def test_more_buffers_than_one_call_takes_are_written_in_order(file, monkeypatch):
    monkeypatch.setattr(platform_fs, "_MOST_BUFFERS", 3)
    parts = [bytes([i]) * (i % 4) for i in range(50)]
    file.pwritev(parts, 7)
    assert file.pread(1000, 7) == b"".join(parts)


@pytest.mark.skipif(not hasattr(os, "pwritev"), reason="no pwritev on this system")
@pytest.mark.parametrize("most", [1, 3, 5, 7, 1000])
def test_short_writes_are_continued(file, monkeypatch, most):
    real_pwrite, real_pwritev = os.pwrite, os.pwritev

    def short_pwrite(fd, data, offset):
        return real_pwrite(fd, memoryview(data)[:most], offset)

    def short_pwritev(fd, buffers, offset):
        return real_pwritev(fd, [b"".join(bytes(b) for b in buffers)[:most]], offset)

    monkeypatch.setattr(os, "pwrite", short_pwrite)
    monkeypatch.setattr(os, "pwritev", short_pwritev)
    parts = [b"one", b"", b"three", b"sevenseven", b"x"]
    file.pwritev(parts, 2)
    file.pwrite(b"tail", 2 + len(b"".join(parts)))
    assert file.pread(100, 2) == b"".join(parts) + b"tail"


def test_short_reads_are_continued(file, monkeypatch):
    file.pwrite(b"0123456789", 0)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: real(fd, min(n, 3), offset))
    assert file.pread(8, 1) == b"12345678"
    assert file.pread(100, 4) == b"456789"


def test_without_positional_calls_the_same_is_read_and_written(fs, tmp_path, monkeypatch):
    for name in ("pread", "pwrite", "pwritev"):
        monkeypatch.delattr(os, name, raising=False)
    file = fs.open(tmp_path / "file", "create")
    file.pwritev([b"ab", b"cd"], 1)
    assert file.pread(10, 0) == b"\0abcd"
    file.close()


def test_create_refuses_a_file_that_exists(fs, tmp_path, file):
    with pytest.raises(FileExistsError):
        fs.open(tmp_path / "file", "create")


def test_a_file_opened_to_read_cannot_be_written(fs, tmp_path, file):
    reader = fs.open(tmp_path / "file", "r")
    with pytest.raises(OSError):
        reader.pwrite(b"x", 0)
    reader.close()


def test_closing_twice_is_fine_and_a_closed_file_says_so(file):
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.pread(1, 0)


def test_a_file_that_is_dropped_gives_its_descriptor_back(fs, tmp_path):
    descriptor = fs.open(tmp_path / "dropped", "create").fileno()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_reserved_space_has_blocks_and_never_shortens(file):
    file.pwrite(b"keep", 0)
    file.reserve(1 << 20)
    assert file.size() == 1 << 20
    assert os.stat(file.path).st_blocks * 512 >= 1 << 20
    file.reserve(100)
    assert file.size() == 1 << 20
    assert file.pread(6, 0) == b"keep\0\0"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate on this system")
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_where_space_cannot_be_reserved_zeros_are_written(file, monkeypatch, code):
    def refuse(fd, offset, n):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    file.reserve(3 << 20)
    assert file.size() == 3 << 20
    assert os.stat(file.path).st_blocks * 512 >= 3 << 20


@pytest.mark.parametrize("grow", [lambda file: file.reserve(1 << 20), lambda file: file.fill(4, 1 << 20)])
def test_a_full_disk_leaves_the_file_as_long_as_it_was(file, monkeypatch, grow):
    def full(*_):
        os.truncate(file.fileno(), 5000)  # the part that had room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file.pwrite(b"keep", 0)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(File, "_write_once", full)
    with pytest.raises(OSError) as caught:
        grow(file)
    assert caught.value.errno == errno.ENOSPC
    assert file.size() == 4


def test_a_failed_sync_is_told_from_other_errors(fs, file, tmp_path, monkeypatch):
    def fail(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, fail, raising=False)
    for sync in (file.sync, lambda: fs.sync_directory(tmp_path)):
        with pytest.raises(SyncFailedError) as caught:
            sync()
        assert caught.value.errno == errno.EIO


@pytest.mark.skipif(not AVAILABLE, reason="Windows has no such call")
def test_a_failed_sync_of_a_commit_is_told_too(fs, file):
    file.of_commits = True
    file.sync()
    reading, writing = os.pipe()
    pipe = File("pipe", writing)
    pipe.of_commits = True
    try:
        with pytest.raises(SyncFailedError) as caught:  # a pipe has no disk
            pipe.sync()
        assert caught.value.errno in (errno.EINVAL, errno.ENOTSUP)
    finally:
        pipe.close()
        os.close(reading)


def test_a_file_is_replaced_whole(fs, tmp_path):
    path = tmp_path / "manifest.json"
    fs.write_atomically(path, b"one")
    fs.write_atomically(path, b"two", b"parts")
    assert fs.read_file(path) == b"twoparts"
    assert fs.listdir(tmp_path) == ["manifest.json"]


def test_a_failure_at_any_step_leaves_the_old_content_or_the_new(fs, tmp_path):
    path = tmp_path / "manifest.json"
    points = [name for name in crash_points.CRASH_POINTS if name.startswith("atomic.")]
    try:
        for point in points:
            fs.write_atomically(path, b"old")

            def crash(name, point=point):
                if name == point:
                    raise KeyboardInterrupt

            crash_points.set_hook(crash)
            with pytest.raises(KeyboardInterrupt):
                fs.write_atomically(path, b"new")
            crash_points.set_hook(None)
            replaced = points.index(point) >= points.index("atomic.replaced")
            assert fs.read_file(path) == (b"new" if replaced else b"old")
    finally:
        crash_points.set_hook(None)
    fs.write_atomically(path, b"after")
    assert fs.listdir(tmp_path) == ["manifest.json"]


def test_a_full_disk_leaves_no_temporary_file(fs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(File, "pwritev", full)
    with pytest.raises(OSError):
        fs.write_atomically(tmp_path / "manifest.json", b"data")
    assert fs.listdir(tmp_path) == []


def test_free_space_is_a_number_of_bytes(fs, tmp_path):
    assert fs.free_space(tmp_path) > 0


# Locks.


def test_a_second_lock_in_the_same_process_is_refused_with_the_owners_id(fs, tmp_path):
    lock = fs.lock(tmp_path / "LOCK", shared=False)
    for shared in (False, True):
        with pytest.raises(LockedError, match=f"process {os.getpid()}") as caught:
            fs.lock(tmp_path / "LOCK", shared=shared)
        assert caught.value.errno == errno.EWOULDBLOCK
    lock.release()
    lock.release()
    fs.lock(tmp_path / "LOCK", shared=False).release()


def test_readers_share_a_lock_and_keep_a_writer_out(fs, tmp_path):
    fs.lock(tmp_path / "LOCK", shared=False).release()
    readers = [fs.lock(tmp_path / "LOCK", shared=True) for _ in range(3)]
    with pytest.raises(LockedError, match="reads it"):
        fs.lock(tmp_path / "LOCK", shared=False)
    for reader in readers:
        reader.release()
    fs.lock(tmp_path / "LOCK", shared=False).release()


def test_a_shared_lock_writes_nothing(fs, tmp_path):
    fs.lock(tmp_path / "LOCK", shared=True).release()
    assert fs.read_file(tmp_path / "LOCK") == b""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs permissions that are enforced")
def test_a_reader_does_without_a_lock_where_none_can_be_made(fs, tmp_path):
    os.chmod(tmp_path, 0o500)
    try:
        fs.lock(tmp_path / "LOCK", shared=True).release()
    finally:
        os.chmod(tmp_path, 0o700)


def test_a_reader_does_without_a_lock_on_read_only_media(fs, tmp_path, monkeypatch):
    real = os.open

    def read_only(path, flags, *mode, **where):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *mode, **where)

    monkeypatch.setattr(os, "open", read_only)
    fs.lock(tmp_path / "LOCK", shared=True).release()
    with pytest.raises(OSError):
        fs.lock(tmp_path / "LOCK", shared=False)


def test_a_waiting_lock_is_taken_when_it_becomes_free(fs, tmp_path):
    lock = fs.lock(tmp_path / "LOCK", shared=False)
    taken = []
    waiter = threading.Thread(target=lambda: taken.append(fs.lock(tmp_path / "LOCK", shared=False, timeout=60)))
    waiter.start()
    lock.release()
    waiter.join()
    taken[0].release()


def test_a_lock_is_taken_on_a_full_disk(fs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    lock = fs.lock(tmp_path / "LOCK", shared=False)
    with pytest.raises(LockedError):
        fs.lock(tmp_path / "LOCK", shared=False)
    lock.release()


def test_waiting_for_a_lock_ends_with_the_timeout(fs, tmp_path):
    lock = fs.lock(tmp_path / "LOCK", shared=False)
    with pytest.raises(LockedError):
        fs.lock(tmp_path / "LOCK", shared=False, timeout=0.05)
    lock.release()


HOLDER = """
    import sys
    from xtree.persistence.files.platform_fs import FileSystem
    lock = FileSystem().lock(sys.argv[1], shared=False)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_kernel_releases_the_lock_of_a_killed_process(fs, tmp_path):
    path = str(tmp_path / "LOCK")
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline().strip() == b"locked"
        with pytest.raises(LockedError, match=f"process {holder.pid}"):
            fs.lock(path, shared=False)
        holder.kill()
        holder.wait()
    fs.lock(path, shared=False).release()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["close_in_child", "release", "exit"])
def test_a_forked_child_never_takes_the_lock_away(fs, tmp_path, how):
    lock = fs.lock(tmp_path / "LOCK", shared=False)
    child = os.fork()
    if child == 0:
        if how != "exit":
            getattr(lock, how)()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(LockedError):
        fs.lock(tmp_path / "LOCK", shared=False)
    assert fs.read_file(tmp_path / "LOCK") == b"%d\n" % os.getpid()
    lock.release()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_living_child_does_not_keep_the_lock_of_its_parent(fs, tmp_path):
    lock = fs.lock(tmp_path / "LOCK", shared=False)
    closed, finish = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        lock.close_in_child()
        os.write(closed[1], b"x")
        os.read(finish[0], 1)
        os._exit(0)
    os.read(closed[0], 1)
    lock.close_in_child()  # as the death of the parent does
    fs.lock(tmp_path / "LOCK", shared=False).release()
    os.write(finish[1], b"x")
    os.waitpid(child, 0)
    for descriptor in (*closed, *finish):
        os.close(descriptor)
