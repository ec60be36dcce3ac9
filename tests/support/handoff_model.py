"""A model of the hand-off of commits: three threads, two of them on one tree, and the leader, in every interleaving.

    commit   WriteScope (the tree's writer lock), Coordinator.submit_commit, carry, CommitQueue.submit, outcome_of
    LEADER   Coordinator._run: CommitQueue.take, then _commit with the turn; in the middle of it a finalizer tries to
             commit, and is refused, because its thread holds the turn and others wait for it

These must hold: nobody returns before the sync and the publication of his commit; one thread at a time writes to the
log; what builds on another commit is published after it; nobody waits for ever. A violation is raised as Flaw, or
ends in a state in which nobody can go on.
"""

from __future__ import annotations

from support.interleaving import Flaw, Program, State, in_order, put

NOBODY = -1


def initial(commits: int, trees: int) -> State:
    return State(
        writer_locks=(NOBODY,) * trees,
        tips=(NOBODY,) * trees,  # the last commit of each tree that is queued
        builds_on=(NOBODY,) * commits,
        queue=(),
        waiting=0,
        turn=NOBODY,
        writing=NOBODY,  # the thread between its write and its publication
        log=(),  # the commits in it
        synced=0,  # how many of them are on the disk
        published=(),
        done=(False,) * commits,
        listening=(False,) * commits,
        group=(),
    )


def write(s: State, who: int, group: tuple[int, ...]) -> None:
    if s.writing != NOBODY:
        raise Flaw("two threads write to the log")
    s.writing = who
    s.log += group


def sync(s: State) -> None:
    s.synced = len(s.log)


def publish(s: State, group: tuple[int, ...]) -> None:
    for commit in group:
        if s.builds_on[commit] != NOBODY and s.builds_on[commit] not in s.published:
            raise Flaw(f"commit {commit} is published before {s.builds_on[commit]}, on which it builds")
        s.published += (commit,)
    s.writing = NOBODY


def commit(me: int, mutant: str, tree: int, leader: int) -> Program:
    """Takes the tree's lock, builds on its tip, commits: alone, if nothing is in the way, or through the queue."""
    careless = mutant == "carried whatever waits and whatever it builds on"

    def lock(s: State) -> bool | None:
        if s.writer_locks[tree] != NOBODY:
            return False
        s.writer_locks = put(s.writer_locks, tree, me)
        s.builds_on = put(s.builds_on, me, s.tips[tree])
        return None

    def look_at_queue(s: State) -> str | None:
        return "waiting += 1" if s.waiting and not careless else None

    def try_turn(s: State) -> str | None:
        if s.turn != NOBODY:
            return "waiting += 1"
        s.turn = me
        return None

    def plan(s: State) -> str | None:
        founded = s.builds_on[me] == NOBODY or s.builds_on[me] in s.published
        if founded or careless:
            return None
        s.turn = NOBODY
        return "waiting += 1"

    def on_queued(s: State) -> None:
        s.tips = put(s.tips, tree, me)
        s.writer_locks = put(s.writer_locks, tree, NOBODY)

    def finish(s: State) -> str:
        s.done = put(s.done, me, True)
        s.turn = NOBODY
        return "return"

    def wait_in_line(s: State) -> None:
        s.waiting += 1

    def queue(s: State) -> None:
        s.queue += (me,)

    def listen(s: State) -> None:
        s.listening = put(s.listening, me, True)

    def wait(s: State) -> bool | None:
        if not s.done[me]:
            return False
        s.waiting -= 1
        return None

    def check(s: State) -> None:
        if me not in s.log[: s.synced]:
            raise Flaw(f"commit {me} returns before its sync")
        if me not in s.published:
            raise Flaw(f"commit {me} returns before it is published")

    handing_over = [("queue.put", queue), ("queued: on_queued", on_queued)]
    if mutant == "the writer lock goes before the commit is queued":
        handing_over.reverse()
    return in_order(
        [
            ("writer lock", lock),
            ("queue.waiting", look_at_queue),
            ("turn.acquire(False)", try_turn),
            ("_plan", plan),
            ("carried: on_queued", on_queued),
            ("writer.write", lambda s: write(s, me, (me,))),
            ("writer.sync", sync),
            ("_publish", lambda s: publish(s, (me,))),
            ("finish_group, turn.release", finish),
            ("waiting += 1", wait_in_line),
            *handing_over,
            *([("listen", listen)] if mutant == "a notification instead of a lock" else []),
            ("done.acquire", wait),
            ("return", check),
        ]
    )


def leader(me: int, mutant: str) -> Program:
    """Takes what is queued, carries it to the disk, wakes those who wait."""

    def take(s: State) -> bool | None:
        if not s.queue:
            return False
        s.group, s.queue = s.queue[:1], s.queue[1:]
        return None

    def take_now(s: State) -> str | None:
        if mutant == "the queue is copied and then emptied":
            s.group += s.queue
            return None
        if not s.queue:
            return "turn.acquire" if mutant != "the leader takes no turn" else "writer.write"
        s.group, s.queue = (*s.group, s.queue[0]), s.queue[1:]
        return "take_now"

    def empty(s: State) -> None:
        s.queue = ()

    def turn(s: State) -> bool | None:
        if s.turn != NOBODY:
            return False
        s.turn = me
        return None

    def finish(s: State) -> str | None:
        first, s.group = s.group[0], s.group[1:]
        heard = s.listening[first] or mutant != "a notification instead of a lock"
        s.done = put(s.done, first, heard)
        return "finish" if s.group else None

    def release(s: State) -> str:
        s.turn = NOBODY if s.turn == me else s.turn
        return "take"

    def finalizer(s: State) -> bool | None:
        return False if mutant == "a finalizer waits for its commit in the leader" else None

    carrying = [
        ("writer.write", lambda s: write(s, me, s.group)),
        ("a finalizer", finalizer),
        ("writer.sync", sync),
        ("_publish", lambda s: publish(s, s.group)),
    ]
    if mutant == "publication before the sync, and the sync after the end":
        carrying = [carrying[0], carrying[-1]]
    return in_order(
        [
            ("take", take),
            ("take_now", take_now),
            *([("empty the queue", empty)] if mutant == "the queue is copied and then emptied" else []),
            ("turn.acquire", turn),
            *carrying,
            ("finish", finish),
            ("turn.release", release),
        ]
    )


def model(mutant: str = "", trees: tuple[int, ...] = (0, 0, 1)) -> tuple[State, dict[str, Program]]:
    """A state and its programs: a commit on each of the trees named, and the leader."""
    programs = {f"commit {i}": commit(i, mutant, tree, len(trees)) for i, tree in enumerate(trees)}
    programs["LEADER"] = leader(len(trees), mutant)
    return initial(len(trees), max(trees) + 1), programs
