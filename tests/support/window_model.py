"""A model of windows, flights and the recycler: two windows, a budget of one, in every interleaving.

    call       Store.enter (Epochs.pin of the flights), Windows.pointer, Windows.map_window, breathe, Store.leave
    grower     Windows.grow, and the publication of a page that lies where the file has grown
    RECYCLER   Recycler.one_pass, Windows.hide, Windows.drop, Windows.drop_outgrown

A mapping has a number that no later one gets again. These must hold, else Flaw is raised: a call that uses a pointer
finds its mapping there, a base never names a mapping that is gone, and a call that knows of the page after the old end
finds it mapped. The model has a call's second look at the generation, but can't show that it is needed: in the model a
load after the exchange of a slot sees everything that was stored before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from support.interleaving import Flaw, Program, State, in_order, load, put, store

WINDOWS = 2
GROWS = 0  # the window whose file grows
BUDGET = 1
NO_FLIGHT = 99


def initial(calls: int) -> State:
    """Both windows are mapped and shown."""
    return State(
        bases=tuple(range(1, WINDOWS + 1)),
        mappings=tuple(range(1, WINDOWS + 1)),
        mapped_ever=WINDOWS,
        generation=0,
        gil=False,
        flights=(NO_FLIGHT,) * calls,
        seen=(0,) * calls,
        pointers=(0,) * calls,
        least=0,
        outgrown=(),  # mappings that were replaced
        chosen=(),  # those that the recycler is going to unmap
        published=False,  # there is a page that only later mappings reach
        knows=(False,) * calls,
        long=0,  # the first mapping that reaches it
    )


def call(me: int, mutant: str, windows: tuple[int, ...]) -> Program:
    """A call that uses one window, breathes, uses the next."""
    fence = mutant != "flight without fence"

    def load_generation(s: State) -> None:
        s.seen = put(s.seen, me, load(s, me, "generation"))

    def take_slot(s: State) -> None:
        store(s, me, "flights", s.seen[me], me, fence)

    def settle(after: str, s: State) -> str | None:
        generation = load(s, me, "generation")
        if generation == s.seen[me]:
            return after
        s.seen = put(s.seen, me, generation)
        return None

    def settle_store(again: str, s: State) -> str:
        store(s, me, "flights", s.seen[me], me, fence)
        return again

    def find(s: State) -> None:
        s.knows = put(s.knows, me, load(s, me, "published"))

    def point(window: int, using: str, s: State) -> str | None:
        s.pointers = put(s.pointers, me, load(s, me, "bases", window))
        return using if s.pointers[me] else None

    def map_window(window: int, s: State) -> bool | None:
        if s.gil:
            return False
        if not s.bases[window]:
            if not s.mappings[window]:
                s.mapped_ever += 1
                s.mappings = put(s.mappings, window, s.mapped_ever)
            store(s, me, "bases", s.mappings[window], window)
        s.pointers = put(s.pointers, me, s.bases[window])
        return None

    def find_mapping(window: int, s: State) -> bool | None:
        if not s.mappings[window]:
            return map_window(window, s)
        s.pointers = put(s.pointers, me, s.mappings[window])
        return None

    def show(window: int, s: State) -> None:
        store(s, me, "bases", s.pointers[me], window)

    def use(window: int, s: State) -> None:
        if s.mappings[window] != s.pointers[me] and s.pointers[me] not in s.outgrown:
            raise Flaw(f"mapping {s.pointers[me]} of window {window} is used, which is gone")
        if window == GROWS and s.knows[me] and s.pointers[me] < s.long:
            raise Flaw(f"mapping {s.pointers[me]} of window {window} is used, which is too short")

    def leave(s: State) -> None:
        s.seen, s.pointers, s.knows = put(s.seen, me, 0), put(s.pointers, me, 0), put(s.knows, me, False)
        store(s, me, "flights", NO_FLIGHT, me, fence=False)

    steps: list[tuple[str, Callable[[State], str | bool | None]]] = [
        ("pin: load_seq(&self.current)", load_generation),
        ("_take_slot: compare_exchange(&at.epoch)", take_slot),
    ]
    for i, window in enumerate(windows):
        using = f"use {i}"
        steps += [
            (f"_settle {i}: load_seq(&e.current)", partial(settle, f"find {i}")),
            (f"_settle {i}: store_seq(&at.epoch)", partial(settle_store, f"_settle {i}: load_seq(&e.current)")),
            (f"find {i}", find if window == GROWS else lambda s: None),
            (f"pointer {i}", partial(point, window, using)),
        ]
        if mutant == "a mapping is shown without the GIL":
            steps += [(f"find mapping {i}", partial(find_mapping, window)), (f"show {i}", partial(show, window))]
        else:
            steps.append((f"map_window {i}", partial(map_window, window)))
        steps.append((using, partial(use, window)))
        if mutant == "a breath with a pointer" and i + 1 < len(windows):
            following = f"_settle {i + 1}: load_seq(&e.current)"
            again = f"breath {i}: load_seq(&e.current)"
            steps += [
                (again, partial(settle, f"use {i} again")),
                (f"breath {i}: store_seq(&at.epoch)", partial(settle_store, again)),
                (f"use {i} again", lambda s, window=window, following=following: use(window, s) or following),
            ]
    return in_order([*steps, ("leave", leave)])


def grower(me: int, mutant: str) -> Program:
    """Replaces a mapping that is too short, and may be hidden, by a larger one; then a page may be there."""

    def map_anew(s: State) -> bool | None:
        if s.gil:
            return False
        s.long = s.mapped_ever + 1
        if s.mappings[GROWS]:
            s.mapped_ever += 1
            s.outgrown += (s.mappings[GROWS],)
            s.mappings = put(s.mappings, GROWS, s.mapped_ever)
            if s.bases[GROWS]:
                store(s, me, "bases", s.mapped_ever, GROWS, mutant != "grown without fence")
        return None

    def publish(s: State) -> None:
        store(s, me, "published", True, fence=False)

    steps = [("_map_anew: store_seq(base)", map_anew), ("publish", publish)]
    return in_order(steps[::-1] if mutant == "published before it is mapped" else steps)


def recycler(me: int, mutant: str, calls: int) -> Program:
    """Hides windows, waits for the flights that began before, and unmaps what no call has shown again."""
    fence = mutant != "hidden without fence"

    def hide(window: int, s: State) -> bool | None:
        over = sum(map(bool, s.mappings)) > BUDGET
        if window == 0 and (s.gil or not (over or s.outgrown)):
            return False
        s.gil = window + 1 < WINDOWS
        if over:
            store(s, me, "bases", 0, window, fence)
        return None

    def find_outgrown(s: State) -> bool | None:
        if s.gil:
            return False
        s.chosen = s.outgrown
        return None

    def drop_outgrown(s: State) -> bool | None:
        if s.gil:
            return False
        s.outgrown = tuple(mapping for mapping in s.outgrown if mapping not in s.chosen)
        s.chosen = ()
        return None

    def advance(s: State) -> None:
        store(s, me, "generation", load(s, me, "generation") + 1, fence=fence)

    def scan_current(s: State) -> None:
        s.least = load(s, me, "generation")

    def scan(i: int, s: State) -> None:
        s.least = min(s.least, load(s, me, "flights", i))

    def judge(s: State) -> str | None:
        return None if s.least >= load(s, me, "generation") else "min_active: load_seq(&self.current)"

    def drop(window: int, s: State) -> bool | None:
        if s.gil:
            return False
        shown = s.bases[window] and mutant != "drop without a look at the base"
        if sum(map(bool, s.mappings)) > BUDGET and not shown:
            s.mappings = put(s.mappings, window, 0)
        if s.bases[window] and s.bases[window] != s.mappings[window]:
            raise Flaw(f"the base of window {window} names mapping {s.bases[window]}, which is gone")
        return None

    def begin_again(s: State) -> str:
        s.least = 0
        return "hide 0"

    hiding = [(f"hide {window}", partial(hide, window)) for window in range(WINDOWS)]
    waiting = [
        ("min_active: load_seq(&self.current)", scan_current),
        *((f"min_active: load_seq(&slots[{i}].epoch)", partial(scan, i)) for i in range(calls)),
        ("min_active >= generation", judge),
    ]
    looking = [("find_outgrown", find_outgrown)]
    advancing = [("flights.advance", advance)]
    steps = [*hiding, *looking, *advancing, *([] if mutant == "no wait for flights" else waiting)]
    if mutant == "generation before hiding":
        steps = [*advancing, *hiding, *looking, *waiting]
    if mutant == "outgrown mappings looked for after the wait":
        steps = [*hiding, *advancing, *waiting, *looking]
    dropping = [(f"drop {w}", partial(drop, w)) for w in range(WINDOWS)]
    return in_order([*steps, *dropping, ("drop_outgrown", drop_outgrown), ("again", begin_again)])


def model(mutant: str = "", calls: int = 1) -> tuple[State, dict[str, Program]]:
    """A state and its programs: calls that use the windows in either order, a file that grows, and the recycler."""
    orders = [tuple(range(WINDOWS)), tuple(reversed(range(WINDOWS)))]
    programs = {f"call {i}": call(i, mutant, orders[i % 2]) for i in range(calls)}
    programs["grower"] = grower(calls, mutant)
    programs["RECYCLER"] = recycler(calls + 1, mutant, calls)
    return initial(calls), programs
