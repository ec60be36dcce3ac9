"""What the manifest of an index lists, and what else lies in its directory."""

import os

from xtree.persistence.files import filenames
from xtree.persistence.files.manifest import Manifest
from xtree.persistence.files.platform_fs import FileSystem


def unlisted(path) -> set[str]:
    """Files that the manifest on the disk doesn't list, without those that every index has."""
    manifest = Manifest.load(FileSystem(), path)
    listed = {filenames.checkpoint_name(entry.number) for entry in manifest.checkpoints}
    listed |= {filenames.log_name(entry.number) for entry in manifest.logs}
    listed |= {filenames.data_name(entry.size_class, entry.number) for entry in manifest.data_files}
    return set(os.listdir(path)) - listed - {filenames.LOCK, filenames.SUPERBLOCK, filenames.MANIFEST}
