"""A model of pins, publication, reclaim and crashes: one tree of one page, a few slots, every interleaving.

Each step is one atomic access of the code, and is labelled with it:

    reader     ReadCall, Epochs.pin, .unpin      store.pyx, mvcc.pyx
    old        Epochs.pin_at                     mvcc.pyx
    RECLAIMER  Store.reclaim, Epochs.reclaim_horizon, ObjectTable.reclaim_one
    writer     WriteSet.take, Coordinator.write_group, WriteSet.publish_rows, Store.publish
    SYNCER     Coordinator.sync_log, of "eventual"
    CRASH      a kill or a power loss, then recovery

A page's content is the epoch that wrote it. Each page is flushed before its commit, since only then a crash needs the
slot itself: a page whose payload is in the log is written anew by recovery. Where one of these doesn't hold, Flaw is
raised:

1. a reader finds, for as long as it is pinned, the page of the epoch that it found published, live or retired later;
2. no pin of the current epoch is below the horizon; one of an old epoch is refused or finds the page of its epoch;
3. after a crash the page of the epoch that is recovered is in its slot, whichever unsynced writes were lost.

A mutant is the name of something that is left out or done in another order; each must break one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

from support.interleaving import END, Flaw, Program, State, in_order, load, put, store

SLOTS = 3
NEVER = 99
NO_PIN = 99
FREE, RESERVED, LIVE, RETIRED = "free", "reserved", "live", "retired"


def initial(pins: int) -> State:
    """Epoch 0 is published, its page in slot 0 and on the disk. The programs with pins are the first ones."""
    return State(
        current=0,
        horizon=0,
        published=0,
        lock=False,  # the store's
        log=((0, 0),),  # (epoch, slot of its page) of each commit
        following=1,
        synced=0,  # the last epoch whose frame is on the disk
        durable=0,  # the last epoch that the store knows to be on the disk
        rows=((LIVE, 0, NEVER),) + ((FREE, NEVER, NEVER),) * (SLOTS - 1),  # state, birth, retire
        cache=(0,) + (None,) * (SLOTS - 1),  # what the slots hold
        disk=(0,) + (None,) * (SLOTS - 1),  # what of that is sure to be on the disk
        pins=(NO_PIN,) * pins,
        seen=(0,) * pins,  # the epoch that a reader has put into its slot, or is going to
        found=(0,) * pins,  # the epoch that a reader found published
        commits=0,
        slot=0,
        least=0,
        second=0,
        target=0,
        crashes=0,
    )


def written(s: State) -> int:
    """The last epoch in the log."""
    return s.log[-1][0]


def look(s: State, epoch: int) -> None:
    """Resolves the page of an epoch and reads it."""
    slot = dict(s.log)[epoch]
    state, birth, retire = s.rows[slot]
    if s.cache[slot] != epoch or state not in (LIVE, RETIRED) or not birth <= epoch < retire:
        raise Flaw(f"the page of epoch {epoch} is {state} from {birth} to {retire} and holds {s.cache[slot]}")


def reader(me: int, mutant: str) -> Program:
    """A call: pins the current epoch, reads what is published, looks at its page at any later moment."""
    fence = mutant != "pin without fence"
    following = "resolve" if mutant == "published before the pin" else "store.published"

    def load_current(s: State) -> None:
        s.seen = put(s.seen, me, load(s, me, "current"))

    def take_slot(s: State) -> str | None:
        store(s, me, "pins", s.seen[me], me, fence)
        return following if mutant == "no second look at the epoch" else None

    def settle(s: State) -> str | None:
        current = load(s, me, "current")
        if current == s.seen[me]:
            return following
        s.seen = put(s.seen, me, current)
        return None

    def settle_store(s: State) -> str:
        store(s, me, "pins", s.seen[me], me, fence)
        return "_settle: load_seq(&e.current)"

    def read_published(s: State) -> None:
        if load(s, me, "pins", me) < s.horizon:
            raise Flaw(f"epoch {load(s, me, 'pins', me)} is pinned, which is below the horizon {s.horizon}")
        s.seen, s.found = put(s.seen, me, 0), put(s.found, me, s.published)

    def resolve(s: State) -> None:
        look(s, s.found[me])

    def unpin(s: State) -> None:
        if mutant != "unpin before the last look":
            s.seen, s.found = put(s.seen, me, 0), put(s.found, me, 0)
        store(s, me, "pins", NO_PIN, me, fence=False)

    pinning = [
        ("pin: load_seq(&self.current)", load_current),
        ("_take_slot: compare_exchange(&at.epoch)", take_slot),
        ("_settle: load_seq(&e.current)", settle),
        ("_settle: store_seq(&at.epoch)", settle_store),
    ]
    finding = [("store.published", read_published)]
    ending = [("resolve", resolve), ("unpin: store_release(&at.epoch)", unpin)]
    if mutant == "unpin before the last look":
        ending.reverse()
    if mutant == "published before the pin":
        pinning, finding = finding, pinning
    return in_order([*pinning, *finding, *ending])


def old_reader(me: int, mutant: str, epoch: int) -> Program:
    """Pins an epoch that may be old by then, and looks at its page unless the pin is refused."""

    def take_slot(s: State) -> str | bool | None:
        if epoch not in dict(s.log):
            return False  # nobody knows of it yet
        store(s, me, "pins", epoch, me)
        return "resolve" if mutant == "no look at the horizon" else None

    def load_horizon(s: State) -> None:
        s.seen = put(s.seen, me, load(s, me, "horizon"))

    def load_current(s: State) -> str | None:
        return None if s.seen[me] <= epoch <= load(s, me, "current") else "unpin: store_release(&at.epoch)"

    def unpin(s: State) -> None:
        s.seen = put(s.seen, me, 0)
        store(s, me, "pins", NO_PIN, me, fence=False)

    pinning = [("pin_at: _take_slot(epoch)", take_slot), ("pin_at: load_seq(&self.horizon)", load_horizon)]
    if mutant == "horizon before the slot":
        pinning.reverse()
    return in_order(
        [
            *pinning,
            ("pin_at: load_seq(&self.current)", load_current),
            ("resolve", lambda s: look(s, epoch)),
            ("unpin: store_release(&at.epoch)", unpin),
        ]
    )


def reclaimer(me: int, mutant: str, pins: int) -> Program:
    """Frees what no pin sees and a crash can't need, again and again."""

    def look_at_current(which: str, s: State) -> None:
        setattr(s, which, min(getattr(s, which), load(s, me, "current")))

    def scan(which: str, i: int, s: State) -> None:
        if mutant != "pins don't count":
            setattr(s, which, min(getattr(s, which), load(s, me, "pins", i)))

    def lock(step: Callable[[State], None], s: State) -> bool | None:
        if s.lock or all(row[0] != RETIRED for row in s.rows):
            return False
        s.lock, s.least, s.second = True, NO_PIN, NO_PIN
        return step(s)

    def publish_horizon(s: State) -> None:
        if mutant != "no horizon":
            horizon = min(s.least, s.second)
            store(s, me, "horizon", max(s.horizon, horizon), fence=mutant != "horizon without fence")

    def reclaim_one(s: State) -> str | None:
        horizon = min(s.least, s.second) + (mutant == "horizon one epoch too high")
        if mutant != "reuse whether durable or not":
            horizon = min(horizon, s.durable)
        for slot, (state, _, retire) in enumerate(s.rows):
            if state == RETIRED and retire <= horizon:
                s.rows = put(s.rows, slot, (FREE, NEVER, NEVER))
                return "reclaim_one"
        s.lock, s.least, s.second = False, 0, 0
        return next(iter(program))

    first, again = (
        [
            (f"{name}: load_seq(&self.current)", partial(look_at_current, which)),
            *((f"{name}: load_seq(&slots[{i}].epoch)", partial(scan, which, i)) for i in range(pins)),
        ]
        for name, which in (("min_active", "least"), ("min_active again", "second"))
    )
    if mutant == "no second scan":
        again = []
    if mutant == "one scan, slots before the current epoch":
        first, again = [*first[1:], first[0]], []
    label, step = first[0]
    publishing = [("reclaim_horizon: store_seq(&self.horizon)", publish_horizon)]
    if mutant == "horizon behind both scans":
        publishing, again = again, publishing
    program = in_order(
        [(label, partial(lock, step)), *first[1:], *publishing, *again, ("reclaim_one", reclaim_one)]
    )
    return program


def writer(me: int, mutant: str, commits: int, eventual: bool) -> Program:
    """Replaces the tree's page, a number of times."""

    def take(slot: int, s: State) -> bool | None:
        if s.lock or s.rows[slot][0] != FREE:
            return False
        s.slot = slot
        s.rows = put(s.rows, slot, (RESERVED, NEVER, NEVER))
        return None

    def fill(s: State) -> None:
        s.cache = put(s.cache, s.slot, s.following)

    def flush(s: State) -> None:
        s.disk = put(s.disk, s.slot, s.cache[s.slot])

    def append(s: State) -> None:
        s.log = (*s.log, (s.following, s.slot))
        s.following += 1

    def sync(s: State) -> None:
        s.synced = written(s)

    def set_durable(s: State) -> None:
        s.durable = s.synced

    def publish_row(s: State) -> bool | None:
        if s.lock:
            return False
        s.lock = True
        s.rows = put(s.rows, s.slot, (LIVE, written(s), NEVER))
        return None

    def retire_row(s: State) -> None:
        slot = s.log[-2][1]
        retire = written(s) - 1 if mutant == "retired one epoch early" else written(s)
        s.rows = put(s.rows, slot, (RETIRED, s.rows[slot][1], retire))
        s.lock = False

    def set_published(s: State) -> None:
        s.published = written(s)

    def advance(s: State) -> None:
        store(s, me, "current", written(s))

    def finish(s: State) -> str | None:
        s.commits += 1
        return "take" if s.commits < commits else None

    flushing, rows = [("data_files.sync", flush)], [("table.publish", publish_row), ("table.retire", retire_row)]
    pointer, epoch = [("published =", set_published)], [("epochs.advance", advance)]
    logging = [("writer.write", append)]
    if not eventual:
        logging += [("writer.sync", sync), ("durable_epoch =", set_durable)]
    publication = [*rows, *pointer, *epoch]
    if mutant == "pointer before rows":
        publication = [*pointer, *epoch, *rows]
    if mutant == "current epoch before pointer":
        publication = [*rows, *epoch, *pointer]
    logged = [*logging, *flushing] if mutant == "log before pages" else [*flushing, *logging]
    take_any = tuple(partial(take, slot) for slot in range(SLOTS))
    return in_order([("take", take_any), ("fill the page", fill), *logged, *publication, ("finish", finish)])


def syncer(mutant: str) -> Program:
    """Syncs the log in the background."""

    def begin(s: State) -> bool | None:
        if s.synced == written(s):
            return False
        s.target = written(s)
        return None

    def sync(s: State) -> None:
        s.synced = s.target

    def set_durable(s: State) -> str:
        s.durable = written(s) if mutant == "durable as of the end of a sync" else s.target
        s.target = 0
        return "begin_sync"

    return in_order([("begin_sync", begin), ("finish_sync", sync), ("durable_epoch =", set_durable)])


def crash(mutant: str, programs: int, most: int, begin: tuple[str, ...]) -> Program:
    """Up to `most` kills and power losses at any moment, and the recovery, at any step of which the next one may come.

    begin: the labels at which the other programs stand once the index is open again; END for those that are gone.
    """

    def fall(kept: int | None, lost: tuple[bool, ...], s: State) -> str | None:
        """kept: how many unsynced frames a power loss leaves, None for a kill; lost: the slots that lose bytes."""
        if s.crashes == most:
            return None
        if kept is not None:
            frames = [frame for frame in s.log if frame[0] <= s.synced]
            unsynced = s.log[len(frames) :]
            if kept > len(unsynced):
                return None
            s.log = (*frames, *unsynced[:kept])
            s.cache = tuple(old if gone else new for old, new, gone in zip(s.disk, s.cache, lost, strict=True))
            s.disk, s.synced = s.cache, written(s)
        epoch, slot = s.log[-1]
        if s.cache[slot] != epoch:
            raise Flaw(f"the page of the recovered epoch {epoch} holds {s.cache[slot]}")
        s.crashes += 1
        s.at = (END,) * programs
        s.buffers = ((),) * programs
        s.pins = (NO_PIN,) * len(s.pins)
        s.seen = s.found = (0,) * len(s.pins)
        s.horizon = s.least = s.second = s.target = s.slot = 0
        s.lock = False
        synced = [frame for frame in s.log if frame[0] <= s.synced]
        s.log = s.log[len(synced) - 1 :]  # frames before the last synced one don't matter any more
        return "recovery: rows"

    def rows(s: State) -> str:
        epoch, slot = s.log[-1]
        s.rows = tuple((LIVE, epoch, NEVER) if i == slot else (FREE, NEVER, NEVER) for i in range(len(s.rows)))
        s.current = s.published = epoch
        return "recovery: open" if mutant == "no sync at the end of recovery" else "recovery: data_files.sync"

    def sync(s: State) -> str:
        s.disk = s.cache
        return "recovery: checkpoint"

    def checkpoint(s: State) -> str:
        s.synced = written(s)
        return "recovery: open"

    def reopen(s: State) -> str:
        s.durable = written(s)
        s.at = begin
        return "runs"

    losses = [partial(fall, kept, lost) for kept in range(SLOTS) for lost in product((False, True), repeat=SLOTS)]
    either = (partial(fall, None, ()), *losses)
    return {
        "runs": either,
        "recovery: rows": (rows, *either),
        "recovery: data_files.sync": (sync, *either),
        "recovery: checkpoint": (checkpoint, *either),
        "recovery: open": (reopen, *either),
    }


def model(
    mutant: str = "",
    readers: int = 0,
    old: int | None = None,
    commits: int = 3,
    eventual: bool = False,
    crashes: int = 0,
) -> tuple[State, dict[str, Program]]:
    """A state and its programs: some readers, one of an old epoch, the reclaimer, the writer, and crashes."""
    pins = readers + (old is not None)
    programs: dict[str, Program] = {f"reader {i}": reader(i, mutant) for i in range(readers)}
    if old is not None:
        programs["old"] = old_reader(readers, mutant, old)
    programs["RECLAIMER"] = reclaimer(pins, mutant, pins)
    programs["writer"] = writer(pins + 1, mutant, commits, eventual)
    if eventual:
        programs["SYNCER"] = syncer(mutant)
    if crashes:
        begin = (*(END for _ in range(pins)), *(next(iter(programs[name])) for name in list(programs)[pins:]), "runs")
        programs["CRASH"] = crash(mutant, len(programs) + 1, crashes, begin)
    return initial(pins), programs
