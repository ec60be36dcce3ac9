"""The targets of `make fuzz` take real files, and refuse what a few thousand random changes make of them."""

from __future__ import annotations

import random
import sys

import pytest
from support.places import TESTS

sys.path.insert(0, str(TESTS / "fuzz"))
import targets

CHANGES = {"directory": 100}
NUMBERS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def place():
    made = targets.Workplace()
    yield made
    made.remove()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_the_fuzzers_begin_with_gets_past_the_checksums(place, name):
    assert any(targets.run(place, name, seed) for seed in targets.seeds(place)[name])


@pytest.mark.parametrize("name", targets.TARGETS)
def test_random_changes_of_real_files_are_read_or_refused(place, tally, name):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    seeds = targets.seeds(place)[name]
    n = CHANGES.get(name, 400)
    for _ in range(n):
        targets.run(place, name, changed(rng.choice(seeds), rng))
    tally(f"random input, {name}", n)


def changed(data: bytes, rng: random.Random) -> bytes:
    """Some bits flipped, numbers overwritten, bytes left out; near the beginning half of the time."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) if rng.random() < 0.5 else min(len(out), 200))
        how = rng.random()
        if how < 0.4:
            out[at] ^= 1 << rng.randrange(8)
        elif how < 0.9:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice((*NUMBERS, rng.randrange(2**64))) % (1 << 8 * size)
            out[at:at + size] = number.to_bytes(size, "little")
        elif len(out) > 16:
            del out[at:at + rng.randrange(9)]
    return bytes(out)
