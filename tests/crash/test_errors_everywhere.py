"""Every call of the operating system fails, once, for a while or for good: nothing is lost, left over or made up.

Promises (Nothing acknowledged is lost):

- an error at any call of the operating system, reads and locks too, once, for a while or for good: clean, or poisons
  where it must; nothing is lost, made up or left behind (descriptors, mappings, threads, locks, slots, handles):
  at some calls test_an_error_at_some_calls_loses_nothing_and_leaves_nothing_behind, at each
  test_an_error_at_any_call_loses_nothing_and_leaves_nothing_behind.
"""

from __future__ import annotations

import itertools
import os
import random

import pytest
from support.faulty_histories import KINDS, LASTING, Attempt, Fault, WatchedFileSystem, attempt, contents, make_template
from support.short_histories import SCRIPTS, after
from support.text_pages import MODES

SOME = 0.015  # share of all combinations in the default run
EACH = (  # what a torture run tries at every call; of the rest it tries a share
    ("EIO", "once"),
    ("EIO", "for good"),
    ("ENOSPC", "once"),
    ("ENOSPC", "for a while"),
    ("EINTR", "once"),
    ("short", "for good"),
)
OF_THE_REST = 0.05

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="looks for what is left in /proc")


def try_all(script, mode, tmp_path, tally, share_of_each, share_of_the_rest) -> None:
    """Runs a history once for each of its calls, which fails."""
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    template, path = make_template(script, mode, tmp_path / "template"), tmp_path / "index"
    whole = attempt(script, template, path, mode)
    assert whole.calls > 20
    for n, kind, lasting in itertools.product(range(1, whole.calls + 1), KINDS, LASTING):
        if lasting == "for a while" and (kind == "short" or n > whole.calls_of_steps):
            continue
        if rng.random() >= (share_of_each if (kind, lasting) in EACH else share_of_the_rest):
            continue
        print(f"{script.name!r}, {mode}, call {n} of {whole.calls}, {kind} {lasting}; seed {seed}")
        fs = attempt(script, template, path, mode, Fault(n, kind, lasting))
        assert fs.failures or kind == "short" or lasting == "for a while" or fs.calls < n
        tally("calls of the operating system that failed")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=lambda script: script.name)
def test_an_error_at_some_calls_loses_nothing_and_leaves_nothing_behind(script, mode, tmp_path, tally):
    try_all(script, mode, tmp_path, tally, SOME, SOME)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=lambda script: script.name)
def test_an_error_at_any_call_loses_nothing_and_leaves_nothing_behind(script, mode, tmp_path, tally):
    try_all(script, mode, tmp_path, tally, 1.0, OF_THE_REST)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["EIO", "short"])
@pytest.mark.parametrize("lasting", ["once", "for good"])
def test_an_error_at_any_call_of_a_reader_after_a_crash_leaves_nothing_behind(tmp_path, tally, kind, lasting):
    script = SCRIPTS["recovery"]
    expected = after(script.before)
    path = make_template(script, "balanced", tmp_path / "template")
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    for n in itertools.count(1):
        fs = WatchedFileSystem(Fault(n, kind, lasting))
        reader = Attempt(script, path, "balanced", fs)
        try:
            with reader.open(mode="r") as runtime:
                assert contents(runtime) == expected
                runtime.check()
        except OSError as error:
            reader.require_documented(error)
        else:
            assert not fs.failures or kind == "short"
        reader.require_nothing_left()
        tally("calls of the operating system that failed")
        if fs.calls < n:
            break
    assert n > 40
    assert {name: (path / name).read_bytes() for name in os.listdir(path)} == before
    with Attempt(script, path, "balanced", WatchedFileSystem(Fault())).open(mode="r") as runtime:
        assert contents(runtime) == expected
