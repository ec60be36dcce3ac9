"""Making an index in a directory, and unmaking it; both are done with the directory's lock held.

A creation that fails leaves nothing behind: no file, and no directory that it made. One that was killed leaves files
without a superblock, and the next creation begins by removing them.
"""

from __future__ import annotations

import contextlib
import os
import uuid

from xtree.persistence.base.config import StoreConfig
from xtree.persistence.base.crash_points import reach
from xtree.persistence.files import filenames
from xtree.persistence.files.lock_file import Lock
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.open_directory import DirectoryLostError, OpenDirectory, path_in
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.files.superblock import Superblock, SuperblockFile


class Creation:
    """What an open makes in a directory that it has locked. made: whether it has made the directory itself."""

    def __init__(self, fs: FileSystem, directory: OpenDirectory, lock: Lock, made: bool) -> None:
        self.directory = directory
        self.begun = False  # there was no index, and one was made, or begun
        self._fs = fs
        self._lock = lock
        self._made = made

    def create(self, config: StoreConfig) -> None:
        """Makes an empty index. The superblock comes last: without it the directory is unborn, and made afresh."""
        fs, directory = self._fs, self.directory
        self.begun = True
        self._sync_name()
        for name in fs.listdir(directory):
            if name != filenames.LOCK and filenames.is_ours(name):
                fs.unlink(path_in(directory, name))
        identity = uuid.uuid4().bytes
        reach("create.before_manifest")
        Manifest(uuid=identity, config=config.to_stored()).save(fs, directory)
        reach("create.manifest_saved")
        first = Superblock(identity, epoch_ceiling=config.epoch_stride, mode=config.durability)
        SuperblockFile.create(fs, directory, first).close()
        reach("create.superblock_synced")

    def undo(self) -> None:
        """Removes what was made, as far as that can be done, and releases the lock; an index that was there stays."""
        with contextlib.suppress(OSError, DirectoryLostError):  # a directory that isn't there any more is left alone
            if self.begun:
                self._remove_files()
        self._fs.give_up(self.directory, self._lock, self._made)

    def _remove_files(self) -> None:
        """Removes all files but the lock's: the superblock first and durably, since nothing else opens without it."""
        fs, directory = self._fs, self.directory
        names = [name for name in fs.listdir(directory) if filenames.is_ours(name) and name != filenames.LOCK]
        if filenames.SUPERBLOCK in names:
            names.remove(filenames.SUPERBLOCK)
            fs.unlink(path_in(directory, filenames.SUPERBLOCK))
            with contextlib.suppress(OSError):
                fs.sync_directory(directory)
        for name in names:
            with contextlib.suppress(OSError):
                fs.unlink(path_in(directory, name))

    def _sync_name(self) -> None:
        """Puts the directory's own name on the disk, even when it was there: its maker may have been killed before.

        Does nothing if somebody else made it, in a directory that may not be read.
        """
        try:
            self._fs.sync_directory(os.path.dirname(self.directory))
        except PermissionError:
            if self._made:
                raise
