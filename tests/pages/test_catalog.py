"""The catalog is immutable, shares what didn't change, and refuses bytes that it didn't write.

Promises (What is on the disk before what):

- a commit among many trees copies one small block of the catalog:
  test_a_change_copies_only_the_block_it_touches.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtree.errors import CorruptionError
from xtree.persistence.store.catalog import (
    ENTRIES_PER_BLOCK,
    MAX_STATE_BYTES,
    OP_SET,
    RECORD,
    Catalog,
    CatalogEntry,
    decode_changes,
    encode_changes,
)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def entries(draw):
    kind = draw(st.sampled_from(["xtree", "other", "ß"]))
    return CatalogEntry(draw(names), kind, draw(st.integers(0, 2**64 - 1)), draw(st.binary(max_size=50)))


def entry(name, root=1, state=b"state"):
    return CatalogEntry(name, "xtree", root, state)


def parts_of(entry):
    return entry.name, entry.kind, entry.root, entry.state


def filled(n):
    return Catalog().with_changes({f"tree-{i}": entry(f"tree-{i}", i) for i in range(n)})


@given(st.lists(entries(), max_size=60))
def test_a_catalog_is_a_mapping_of_its_last_changes(given_entries):
    catalog, model = Catalog(), {}
    for one in given_entries:
        catalog = catalog.with_changes({one.name: one})
        model[one.name] = one
    assert len(catalog) == len(model)
    assert catalog.names() == sorted(model)
    assert {one.name: one for one in catalog} == model
    assert all(catalog.get(name) == one for name, one in model.items())
    assert Catalog.decode(catalog.encode()) == catalog


@given(st.dictionaries(names, st.one_of(st.none(), st.binary(max_size=40)), max_size=20))
def test_changes_come_back_as_they_were(states):
    changes = {name: None if state is None else entry(name, 5, state) for name, state in states.items()}
    assert decode_changes(encode_changes(changes)) == changes


def test_a_catalog_stays_the_same_when_another_is_made_of_it():
    before = filled(100)
    after = before.with_changes({"tree-5": None, "tree-6": entry("tree-6", 999), "new": entry("new")})
    assert len(before) == 100 and before.get("tree-6").root == 6 and before.get("new") is None
    assert len(after) == 100 and after.get("tree-5") is None and after.get("tree-6").root == 999
    assert before != after


def test_a_change_copies_only_the_block_it_touches():
    before = filled(1000)
    after = before.with_changes({"tree-500": entry("tree-500", 7)})
    copied = [new for old, new in zip(before.blocks, after.blocks, strict=True) if old is not new]
    assert len(copied) == 1
    assert len(copied[0]) <= 4 * ENTRIES_PER_BLOCK


def test_blocks_stay_small_as_a_catalog_grows_one_by_one():
    catalog = Catalog()
    for i in range(3000):
        catalog = catalog.with_changes({f"{i}": entry(f"{i}")})
    assert max(len(block) for block in catalog.blocks) <= 5 * ENTRIES_PER_BLOCK
    assert len(catalog) == 3000


def test_dropping_what_is_not_there_changes_nothing():
    assert filled(3).with_changes({"absent": None}) == filled(3)


@given(entries(), st.integers(0, 2**64 - 1), st.binary(max_size=50))
def test_an_entry_that_follows_another_is_as_if_made_anew(before, root, state):
    view = object()
    after = before.followed_by(root, state, view)
    assert after == CatalogEntry(before.name, before.kind, root, state) and after.decoded is view
    assert encode_changes({after.name: after}) == encode_changes({after.name: CatalogEntry(*parts_of(after))})
    assert decode_changes(after.encode()) == {before.name: after}
    with pytest.raises(ValueError, match="root"):
        before.followed_by(1 << 64, state)
    with pytest.raises(ValueError, match="state"):
        before.followed_by(root, bytes(MAX_STATE_BYTES + 1))


def test_an_entry_is_set_under_its_own_name_only():
    with pytest.raises(ValueError, match="can't be set"):
        Catalog().with_changes({"a": entry("b")})


def test_the_view_is_neither_compared_nor_stored():
    one, other = entry("a"), entry("a")
    one.decoded = object()
    assert one == other and hash(one) == hash(other)
    assert Catalog.decode(Catalog({"a": one}).encode()).get("a").decoded is None


@pytest.mark.parametrize(
    "arguments",
    [("", "k", 0, b""), ("n", "", 0, b""), ("n" * 2000, "k", 0, b""), ("n", "k" * 256, 0, b""), ("n", "k", 2**64, b"")],
)
def test_an_entry_that_could_not_be_stored_is_refused(arguments):
    with pytest.raises(ValueError):
        CatalogEntry(*arguments)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data):
    for decode in (Catalog.decode, decode_changes):
        try:
            decode(data)
        except CorruptionError:
            pass


@given(st.integers(0, 200), st.integers(0, 255))
def test_damaged_records_decode_or_are_refused(position, value):
    data = bytearray(filled(5).encode())
    data[position % len(data)] = value
    try:
        Catalog.decode(bytes(data))
    except CorruptionError as error:
        assert "expected" in str(error)


def test_every_truncation_within_a_record_is_refused():
    data = encode_changes({"name": entry("name")})
    for n in range(1, len(data)):
        with pytest.raises(CorruptionError, match="at offset 1000"):
            decode_changes(data[:n], "file", 1000)


def test_a_length_beyond_the_bytes_at_hand_is_refused():
    record = RECORD.pack(OP_SET, 255, 65535, 2**32 - 1, 1)
    with pytest.raises(CorruptionError, match="within 0 bytes"):
        decode_changes(record)


def test_a_whole_catalog_holds_no_name_twice_and_no_drop():
    one = encode_changes({"a": entry("a")})
    with pytest.raises(CorruptionError, match="again"):
        Catalog.decode(one + one)
    with pytest.raises(CorruptionError, match="dropped"):
        Catalog.decode(encode_changes({"a": None}))
