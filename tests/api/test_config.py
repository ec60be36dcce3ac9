"""Config: fields are checked where they are given, and say which of them an index keeps."""

import dataclasses
import inspect
import pickle
import warnings

import numpy as np
import pytest

import xtree
from xtree.algorithms.parameters import TreeParameters
from xtree.config import Config
from xtree.persistence.base.config import GIB, MIB, StoreConfig


def test_defaults_are_valid_and_balanced():
    config = Config()
    assert config.durability == "balanced"
    assert config.window_bytes == GIB


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().window_bytes = MIB


@pytest.mark.parametrize("mode", ["Strict", "fast", "", None, 2])
def test_a_mode_that_does_not_exist_is_refused_by_name(mode):
    with pytest.raises(ValueError, match="durability must be 'strict' or 'balanced' or 'eventual', not "):
        Config(durability=mode)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_bytes", 0),
        ("window_bytes", MIB + 1),
        ("window_bytes", -MIB),
        ("window_bytes", 2**63),
        ("data_file_first_bytes", 100),
        ("data_file_first_bytes", 2 * GIB),
        ("data_file_bytes", 2 * GIB),
        ("data_file_bytes", 4096),
        ("data_file_bytes", MIB + 1),
        ("mapping_budget", 0),
        ("descriptor_budget", 0),
        ("slow_reader_s", -1),
        ("max_payload_in_wal", -1),
        ("bulk_payload_limit", -1),
        ("checkpoint_log_bytes", 0),
        ("wal_fill_bytes", 0),
        ("wal_fill_limit_bytes", 4096),
        ("checkpoint_burst_log_bytes", 0),
        ("checkpoint_burst_epochs", 0),
        ("checkpoint_interval_s", 0),
        ("checkpoint_idle_s", float("nan")),
        ("checkpoint_min_interval_s", -1),
        ("wal_segment_bytes", 100),
        ("wal_rotate_bytes", 0),
        ("wal_rotate_age_s", 0.0),
        ("gc_keep_logs", -1),
        ("gc_min_age_s", -0.1),
        ("gc_lag_checkpoints", 0),
        ("log_limit_bytes", 0),
        ("backpressure_timeout_s", float("inf")),
        ("epoch_stride", 0),
        ("checkpoints_kept", 0),
        ("reserve_bytes", -1),
        ("sync_interval_ms", 0),
        ("group_window_ms", -0.1),
        ("group_window_ms", float("inf")),
        ("page_bytes", 5000),
        ("page_bytes", 2048),
        ("page_bytes", 12288),
        ("max_overlap", -0.1),
        ("max_overlap", float("nan")),
        ("min_fanout", 0.6),
        ("min_fill", 0.51),
        ("min_fanout", 0.0),
        ("min_fill", 0),
        ("leaf_fill", 0.0),
        ("leaf_fill", 0.79),
        ("leaf_fill", float("inf")),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ValueError, match=field):
        Config(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_bytes", "1"),
        ("window_bytes", 1.0),
        ("window_bytes", True),
        ("window_bytes", None),
        ("checkpoints_kept", 2.5),
        ("page_bytes", "4096"),
        ("max_overlap", "0.2"),
        ("min_fill", None),
        ("leaf_fill", True),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(TypeError, match=field):
        Config(**{field: value})


def test_numpy_scalars_become_plain_numbers():
    config = Config(window_bytes=np.int64(MIB), leaf_fill=np.float32(0.875), max_overlap=np.float64(0.25))
    assert type(config.window_bytes) is int
    assert type(config.leaf_fill) is float


def test_stored_fields_come_from_the_index_and_others_from_the_caller():
    made = Config(window_bytes=4 * MIB, checkpoints_kept=3)
    opened = Config(window_bytes=8 * MIB, checkpoints_kept=1).with_stored(made.to_stored())
    assert opened.window_bytes == 4 * MIB
    assert opened.checkpoints_kept == 1
    assert set(made.to_stored()) == set(Config.STORED)


@pytest.mark.parametrize("stored", [{}, {"window_bytes": MIB, "other": 1}, {"other": 1}])
def test_stored_fields_that_are_not_exactly_the_known_ones_are_refused(stored):
    with pytest.raises(ValueError, match="stored fields"):
        Config().with_stored(stored)


def public_fields() -> list[str]:
    parameters = inspect.signature(Config).parameters.values()
    return [one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]


def test_every_field_is_documented():
    assert len(public_fields()) == 17
    for name in public_fields():
        assert f"`{name}`" in Config.__doc__
    for field in dataclasses.fields(StoreConfig):
        assert f"`{field.name}`" in StoreConfig.__doc__
    for field in dataclasses.fields(TreeParameters):
        assert f"`{field.name}`" in TreeParameters.__doc__


def test_defaults_are_those_of_the_store_and_the_tree():
    for part in (StoreConfig, TreeParameters):
        for field in dataclasses.fields(part):
            assert getattr(Config(), field.name) == getattr(part(), field.name) == field.default


def test_a_field_of_earlier_versions_is_accepted_with_a_warning_and_does_what_it_did():
    with pytest.warns(DeprecationWarning, match=r"Config\.gc_keep_logs will go"):
        config = Config(gc_keep_logs=3)
    with pytest.warns(DeprecationWarning, match="gc_keep_logs"):
        assert dataclasses.replace(config, durability="strict").gc_keep_logs == 3
    assert config == pickle.loads(pickle.dumps(config)) != Config()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataclasses.replace(Config(max_overlap=0.5), min_fill=0.3) == Config(max_overlap=0.5, min_fill=0.3)


def test_an_open_does_not_warn_again_of_a_field_that_was_accepted(tmp_path):
    with pytest.warns(DeprecationWarning, match="gc_keep_logs"):
        config = Config(gc_keep_logs=3)
    xtree.open(tmp_path / "index", dims=2, config=Config(window_bytes=4 * MIB)).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xtree.open(tmp_path / "index", durability="strict", config=config) as tree:
            found = tree.runtime._store.config
    assert (found.window_bytes, found.durability, found.gc_keep_logs) == (4 * MIB, "strict", 3)
    assert type(found) is Config and config.durability == "balanced"


def test_a_field_that_never_was_is_refused_by_its_name():
    with pytest.raises(TypeError, match="no field 'page_size'"):
        Config(page_size=4096)


def test_a_config_shows_what_differs_from_the_defaults():
    assert repr(Config()) == "Config()"
    assert repr(Config(durability="strict", page_bytes=8192)) == "Config(durability='strict', page_bytes=8192)"


def test_tree_parameters_are_those_a_tree_keeps():
    assert Config(page_bytes=8192).tree_parameters() == {
        "page_bytes": 8192,
        "max_overlap": 0.2,
        "min_fanout": 0.35,
        "min_fill": 0.4,
        "leaf_fill": 0.98,
    }
