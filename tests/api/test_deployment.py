"""The page about services: its code runs, its table names every error, and each alert fires when it should.

The rules' expressions are evaluated here, on what prometheus_client collects from real indexes. The part of PromQL
that they use is `METRIC{label="value"}`, `increase(METRIC[10m])` from two scrapes, one `/`, comparisons, and `and`.
"""

from __future__ import annotations

import errno
import operator
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import prometheus_client
import pytest
import yaml
from support.faulty_fs import PATIENCE_S
from support.places import ROOT
from support.text_pages import settle

import xtree
import xtree.prometheus
from xtree.persistence.files.platform_fs import File, SyncFailedError

PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
ALERTS = ROOT / "examples" / "alerts.yml"
GROUPS = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Scrape = dict[str, Vector]  # samples by the name of their metric

UNASKED = {"checkpoint_interval_s": 1e8, "checkpoint_idle_s": 1e8}  # no checkpoint but those that are asked for

# The rules' language.

TOKEN = re.compile(r'\s*(\[\w+\]|"[^"]*"|[\w.]+|==|>=|<=|[=<>/(){},])')
COMPARISONS = {"==": operator.eq, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


class Expression:
    """An expression of a rule over two scrapes. Raises ValueError for what it doesn't know, KeyError for no metric."""

    def __init__(self, text: str, before: Scrape, now: Scrape) -> None:
        self.tokens = TOKEN.findall(text)
        if "".join(self.tokens) != re.sub(r"\s", "", text):
            raise ValueError(f"not understood: {text}")
        self.before, self.now = before, now

    def value(self) -> Vector:
        """The samples that the expression leaves: an alert fires for each of them."""
        found = self._comparison()
        while self._took("and"):
            ignored = self._ignored()
            other = {without(labels, ignored) for labels in self._comparison()}
            found = {labels: value for labels, value in found.items() if without(labels, ignored) in other}
        if self.tokens:
            raise ValueError(f"not understood: {self.tokens}")
        return found

    def _comparison(self) -> Vector:
        left = self._ratio()
        sign = self._next()
        if sign not in COMPARISONS:
            raise ValueError(f"no comparison: {sign}")
        holds, ignored = COMPARISONS[sign], self._ignored()
        if self.tokens and self.tokens[0][0].isdigit():
            limit = float(self._next())
            return {labels: value for labels, value in left.items() if holds(value, limit)}
        right = matched(self._ratio(), ignored)
        return {
            labels: value
            for labels, value in matched(left, ignored).items()
            if labels in right and holds(value, right[labels])
        }

    def _ratio(self) -> Vector:
        left = self._operand()
        if not self._took("/"):
            return left
        right = self._operand()
        return {labels: quotient(value, right[labels]) for labels, value in left.items() if labels in right}

    def _operand(self) -> Vector:
        name = self._next()
        if name != "increase":
            return self._selected(name, self.now)
        self._expect("(")
        name, tokens = self._next(), self.tokens[:]
        now = self._selected(name, self.now)
        self.tokens = tokens
        before = self._selected(name, self.before)
        if not re.fullmatch(r"\[\d+m\]", self._next()):
            raise ValueError("increase() needs a range")
        self._expect(")")
        return {labels: value - before[labels] for labels, value in now.items()}

    def _selected(self, name: str, scrape: Scrape) -> Vector:
        wanted = set()
        if self._took("{"):
            label = self._next()
            self._expect("=")
            wanted = {(label, self._next().strip('"'))}
            self._expect("}")
        return {labels: value for labels, value in scrape[name].items() if wanted <= labels}

    def _ignored(self) -> str:
        if not self._took("ignoring"):
            return ""
        self._expect("(")
        label = self._next()
        self._expect(")")
        return label

    def _next(self) -> str:
        return self.tokens.pop(0) if self.tokens else ""

    def _took(self, token: str) -> bool:
        return bool(self.tokens and self.tokens[0] == token and self.tokens.pop(0))

    def _expect(self, token: str) -> None:
        if not self._took(token):
            raise ValueError(f"expected {token} at {self.tokens}")


def without(labels: Labels, ignored: str) -> Labels:
    """The labels except one."""
    return frozenset(label for label in labels if label[0] != ignored)


def matched(samples: Vector, ignored: str) -> Vector:
    """Samples without a label. Raises ValueError where several become one, as Prometheus does."""
    found = {without(labels, ignored): value for labels, value in samples.items()}
    if len(found) < len(samples):
        raise ValueError(f"several samples are one without {ignored!r}")
    return found


def quotient(a: float, b: float) -> float:
    """a / b as PromQL has it: x / 0 is infinite, and 0 / 0 is NaN, for which no comparison holds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(a) / np.float64(b))


def scrape(runtime: xtree.Runtime) -> Scrape:
    """What Prometheus gets from a runtime now."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(xtree.prometheus.Collector(runtime))
    found: Scrape = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def firing(before: Scrape, now: Scrape) -> set[str]:
    """The alerts whose expressions are true."""
    return {name for name, rule in RULES.items() if Expression(rule["expr"], before, now).value()}


def samples(**values: float) -> Scrape:
    return {name: {frozenset({("path", "p")}): value} for name, value in values.items()}


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("a == 3", True), ("a == 2", False), ("a > 3", False), ("a >= 3", True), ("b < 1", True), ("b <= 0", True),
        ("increase(a[10m]) == 2", True), ("increase(b[10m]) > 0", False),
        ("increase(a[10m]) / a > 0.6", True), ("increase(a[10m]) / a > 0.7", False),
        ("a / b > 1000000", True), ("b / b > 0", False), ("b / b == 0", False),
        ("a > b", True), ("b > a", False), ("a > 2 and b == 0", True), ("a > 2 and b > 0", False),
    ],
)  # fmt: skip
def test_expressions_mean_what_they_mean_in_prometheus(expression, holds):
    assert bool(Expression(expression, samples(a=1, b=0), samples(a=3, b=0)).value()) == holds


def test_labels_select_and_are_matched_as_in_prometheus():
    state = {"m": {frozenset({("path", "p"), ("state", name)}): value for name, value in (("x", 1), ("y", 2))}}

    def value(text: str) -> Vector:
        return Expression(text, state, state).value()

    path = frozenset({("path", "p")})
    assert value('m{state="y"} > ignoring(state) m{state="x"}') == {path: 2}
    assert value('m{state="y"} > m{state="x"}') == {}
    assert value('m{state="y"} > ignoring(state) m{state="x"} and m{state="x"} > 0') == {}
    assert value('m{state="y"} > ignoring(state) m{state="x"} and ignoring(state) m{state="x"} > 0') == {path: 2}
    with pytest.raises(ValueError, match="several"):
        value("m > ignoring(state) m")


@pytest.mark.parametrize(
    "text", ["m", "m > 1 or m > 2", "rate(m[5m]) > 1", "m > 1 m", "increase(m) > 1", "m + 1 > 2", "none > 1"]
)
def test_what_the_evaluator_does_not_know_it_refuses(text):
    with pytest.raises((ValueError, KeyError)):
        Expression(text, samples(m=1), samples(m=1)).value()


# States of an index: first the trouble, then what follows once it is over, each between two scrapes.

States = Iterator[tuple[Scrape, Scrape]]


def some(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n), np.random.default_rng(seed).random((n, 2))


def store_failed(path: Path, patch: pytest.MonkeyPatch) -> States:
    """A disk that doesn't sync any more, until the index is opened anew."""

    def fail(self: File) -> None:
        raise SyncFailedError(errno.EIO, os.strerror(errno.EIO), self.path)

    with xtree.Runtime(path) as runtime:
        tree = runtime.tree("places", dims=2)
        patch.setattr(File, "sync", fail)
        with pytest.raises(OSError):
            tree.insert(1, (0, 0))
        before = scrape(runtime)
        with pytest.raises(xtree.StoreFailedError):
            tree.insert(2, (0, 0))
        yield before, scrape(runtime)
        patch.undo()
    with xtree.Runtime(path) as runtime:
        before = scrape(runtime)
        runtime.tree("places").insert(2, (0, 0))
        runtime.checkpoint()
        yield before, scrape(runtime)


def checkpoints_fail(path: Path, patch: pytest.MonkeyPatch) -> States:
    """A checkpoint for which there is no room on the disk, until there is."""
    pwritev = File.pwritev

    def full(self: File, *arguments: object) -> object:
        if self.path.endswith(".ckpt.tmp"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        return pwritev(self, *arguments)

    with xtree.Runtime(path, config=xtree.Config(**UNASKED)) as runtime:
        runtime.tree("places", dims=2).insert_many(*some(100))
        before = scrape(runtime)
        patch.setattr(File, "pwritev", full)
        with pytest.raises(OSError):
            runtime.checkpoint()
        yield before, scrape(runtime)
        patch.undo()
        before = scrape(runtime)
        runtime.checkpoint()
        yield before, scrape(runtime)


def log_outruns_checkpoints(path: Path, patch: pytest.MonkeyPatch) -> States:
    """Commits that go on while a checkpoint doesn't end, until it does."""
    sync, held, let_go = File.sync, threading.Event(), threading.Event()

    def hold(self: File) -> None:
        if self.path.endswith(".ckpt.tmp"):
            held.set()
            assert let_go.wait(PATIENCE_S)
        sync(self)

    with xtree.Runtime(path, config=xtree.Config(**UNASKED)) as runtime:
        tree = runtime.tree("places", dims=2)
        patch.setattr(File, "sync", hold)
        checkpoint = threading.Thread(target=runtime.checkpoint)
        checkpoint.start()
        try:
            assert held.wait(PATIENCE_S)
            before = scrape(runtime)
            for i in range(20):
                tree.insert(i, (0, 0))
            yield before, scrape(runtime)
        finally:
            let_go.set()
            checkpoint.join()
        tree.insert(21, (0, 0))
        runtime.checkpoint()
        yield before, scrape(runtime)


def slow_reader(path: Path, patch: pytest.MonkeyPatch) -> States:
    """A snapshot that stays open while others rewrite most pages again and again, until it is closed."""
    ids, points = some(50_000)
    tree = xtree.XTree.from_points(points, path=path)
    runtime = tree.runtime
    with tree:
        before = scrape(runtime)
        with tree.snapshot():
            for first in range(30):
                chosen = slice(first, None, 30)  # records all over the plane: nearly every leaf
                with tree.transaction() as tx:
                    tx.delete_many(ids[chosen], points[chosen])
                    tx.insert_many(ids[chosen], points[chosen])
            runtime.checkpoint()
            yield before, scrape(runtime)
        deadline = time.monotonic() + PATIENCE_S
        while runtime.stats()["object_table"]["retired"]:
            assert time.monotonic() < deadline
            settle(runtime._store)
        yield before, scrape(runtime)


def no_room_for_pages(path: Path, patch: pytest.MonkeyPatch) -> States:
    """A disk with no room left, until there is some again."""
    with xtree.Runtime(path) as runtime:
        runtime.tree("places", dims=2).insert(1, (0, 0))
    with xtree.Runtime(path, config=xtree.Config(reserve_bytes=1 << 50)) as runtime:
        before = scrape(runtime)
        with pytest.raises(OSError) as raised:
            runtime.tree("places").insert_many(*some(20_000))
        assert raised.value.errno == errno.ENOSPC
        yield before, scrape(runtime)
    with xtree.Runtime(path) as runtime:
        before = scrape(runtime)
        runtime.tree("places").insert_many(*some(20_000))
        runtime.checkpoint()
        yield before, scrape(runtime)


STATES: dict[str, Callable[[Path, pytest.MonkeyPatch], States]] = {
    "XtreeStoreFailed": store_failed,
    "XtreeCheckpointsFail": checkpoints_fail,
    "XtreeLogOutrunsCheckpoints": log_outruns_checkpoints,
    "XtreeSlowReaderHoldsSpace": slow_reader,
    "XtreeNoRoomForPages": no_room_for_pages,
}


@pytest.mark.parametrize("alert", RULES)
def test_each_alert_fires_in_its_trouble_alone_and_ends_with_it(alert, tmp_path, monkeypatch):
    states = STATES[alert](tmp_path / "index", monkeypatch)
    assert firing(*next(states)) == {alert}
    assert firing(*next(states)) == set()
    assert next(states, None) is None


@pytest.mark.parametrize("mode", ["strict", "balanced", "eventual"])
def test_no_alert_fires_for_an_index_that_works(tmp_path, mode):
    ids, points = some(5_000)
    with xtree.Runtime(tmp_path / "index", durability=mode) as runtime:
        tree = runtime.tree("places", dims=2)
        before = scrape(runtime)
        assert firing(before, before) == set()
        tree.bulk_load(ids, points)
        with tree.snapshot() as snapshot:
            for i in range(0, 100, 10):
                tree.delete_many(ids[i : i + 10], points[i : i + 10])
            assert len(snapshot) == 5_000
            runtime.backup(tmp_path / "backup")
            runtime.checkpoint()
            assert firing(before, scrape(runtime)) == set()
        now = scrape(runtime)
        assert firing(before, now) == firing(now, now) == set()
    with xtree.Runtime(tmp_path / "index", mode="r") as runtime:
        now = scrape(runtime)
        assert runtime.tree("places").count((0, 0, 1, 1)) == 4_900
        assert firing(now, scrape(runtime)) == set()


def test_the_threshold_of_the_log_is_three_quarters_of_the_default_limit():
    limit = xtree.Config().log_limit_bytes
    [threshold] = re.findall(r"> (\d+)$", RULES["XtreeLogOutrunsCheckpoints"]["expr"])
    assert int(threshold) == limit * 3 // 4
    none = samples(xtree_wal_bytes_total=0, xtree_checkpoints_total=0)
    for log_bytes, checkpoints, fires in ((limit, 1, True), (limit, 2, False), (1, 0, True), (0, 0, False)):
        now = samples(xtree_wal_bytes_total=log_bytes, xtree_checkpoints_total=checkpoints)
        assert bool(Expression(RULES["XtreeLogOutrunsCheckpoints"]["expr"], none, now).value()) == fires


def test_pages_that_readers_hold_back_are_many_only_beside_those_that_are_live():
    for live, retired, fires in ((30_000, 20_000, False), (19_000, 20_000, True), (100, 9_000, False)):
        states = {"live": live, "retired": retired, "free": 0, "reserved": 0}
        now = {"xtree_handles": {frozenset({("path", "p"), ("state", s)}): n for s, n in states.items()}}
        assert bool(Expression(RULES["XtreeSlowReaderHoldsSpace"]["expr"], now, now).value()) == fires


def test_the_rules_have_what_prometheus_asks_for_and_the_page_lists_them():
    assert [set(group) for group in GROUPS] == [{"name", "rules"}]
    for rule in RULES.values():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"]) and rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "{{ $labels.path }}" in rule["annotations"]["summary"]
        assert set(re.findall(r"\bxtree_\w+", rule["annotations"]["description"])) <= {"xtree_oldest_pin_seconds"}
    assert re.findall(r"^\| `(Xtree\w+)`", PAGE, re.MULTILINE) == list(RULES) == list(STATES)
    assert len(RULES) == 5


# The page.


def test_every_metric_that_the_page_names_is_exported(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        exported = set(scrape(runtime))
    named = set(re.findall(r"\bxtree_\w+", PAGE))
    assert named and named <= exported


def test_every_setting_that_the_page_names_exists():
    named = {name for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE) if not name.startswith("xtree_")}
    assert {"log_limit_bytes", "checkpoints_kept"} <= named - {"bulk_load"} <= set(xtree.Config.__dataclass_fields__)


def test_the_table_of_errors_names_every_error_that_xtree_has_and_no_other():
    table = PAGE.partition("## What to do at each error")[2]
    rows = re.findall(r"^\| `(\w+)`(?:, (\w+))? \|", table, re.MULTILINE)
    exported = {
        name for name in xtree.__all__
        if isinstance(getattr(xtree, name), type) and issubclass(getattr(xtree, name), BaseException)
    }  # fmt: skip
    assert exported == set(xtree.errors.__all__)
    assert [row for row in rows if row[0] not in exported] == [
        ("TimeoutError", ""), ("OSError", "ENOSPC"), ("OSError", "EIO")
    ]  # fmt: skip
    assert sorted(name for name, _ in rows if name in exported) == sorted(exported)
    assert issubclass(xtree.LockedError, OSError) and issubclass(TimeoutError, OSError)
    assert len(rows) == len(re.findall(r"^\|", table, re.MULTILINE)) - 2


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    opening, backup, restore = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}

    def run(block: str) -> None:
        exec(compile(block, "deployment.md", "exec"), names)

    run(opening)
    names["places"].insert_many(*some(100))
    run(backup)
    folder, first = Path("backups"), names["latest"]
    names["places"].insert(100, (0, 0))
    (folder / "20000101T000000.000000Z.part").mkdir()
    later = [names["back_up"](names["runtime"], folder, keep=2) for _ in range(3)]
    assert sorted(folder.iterdir()) == sorted(later[1:])
    assert not first.exists()
    names["latest"] = later[-1]
    names["places"].delete(100, (0, 0))
    run(restore)
    with names["runtime"] as runtime:
        assert len(runtime.tree("places")) == 101
        runtime.check()
    with xtree.Runtime("places.damaged") as runtime:
        assert len(runtime.tree("places")) == 100


def test_a_replacing_worker_gets_the_index_when_the_old_one_has_closed_it(tmp_path):
    """What the page says of reloads and of handles from before a fork, in processes of their own."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    asking, asked = os.pipe()
    runtime = xtree.Runtime(tmp_path / "index")
    runtime.tree("places", dims=2).insert(1, (0, 0))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pytest.raises(xtree.LockedError):
                xtree.Runtime(tmp_path / "index")
            with pytest.raises(xtree.LockedError):
                len(runtime.tree("places"))
            os.write(asked, b"x")
            with xtree.Runtime(tmp_path / "index", timeout=PATIENCE_S) as mine:
                mine.tree("places").insert(2, (0, 0))
                with pytest.raises(xtree.ReadOnlyError):
                    runtime.tree("places").insert(3, (0, 0))
            status = 0
        finally:
            os._exit(status)
    os.close(asked)
    assert os.read(asking, 1) == b"x"
    os.close(asking)
    runtime.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with xtree.Runtime(tmp_path / "index") as runtime:
        assert len(runtime.tree("places")) == 2
