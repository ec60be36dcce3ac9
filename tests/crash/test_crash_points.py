"""Crash points: every one that code reaches is registered, and every registered one is reached by code."""

import re
from pathlib import Path

import pytest

from xtree.persistence.base import crash_points
from xtree.persistence.base.crash_points import CRASH_POINTS, reach, set_hook

SOURCE = Path(crash_points.__file__).parent.parent


def test_registered_points_are_those_the_code_reaches():
    reached = set()
    for path in [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyx")]:
        reached |= set(re.findall(r"\breach\(\"([^\"]+)\"\)", path.read_text(encoding="utf-8")))
    assert reached == set(CRASH_POINTS)
    assert len(set(CRASH_POINTS)) == len(CRASH_POINTS)


def test_a_hook_is_called_with_the_name_and_may_raise():
    seen = []

    def hook(name):
        seen.append(name)
        if name == "wal.synced":
            raise KeyboardInterrupt

    set_hook(hook)
    try:
        reach("wal.appended")
        with pytest.raises(KeyboardInterrupt):
            reach("wal.synced")
    finally:
        set_hook(None)
    reach("wal.created")
    assert seen == ["wal.appended", "wal.synced"]
