"""A model of the hand-off of commits: three threads, two of them on one tree, and the leader, in every interleaving.

    commit   WriteScope (the tree's writer lock), Coordinator.submit_commit, carry, CommitQueue.submit, wait_for. The
             first one is the main thread: while it waits, a signal handler waits for the second one to return
    LEADER   Coordinator._lead: CommitQueue.gather and take, then _commit with the turn, then finish_together; in the
             middle a finalizer tries to commit, and is refused, because its thread holds the turn and others wait

What code does between two chances for another thread to get the GIL is one step.

In eventual mode a thread that gets the turn carries all that is queued, and then its own commit.

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
        bell=False,  # something is in it
        wanted=0,  # the leader sleeps until so many are queued; 0: it is awake
        rung=False,
        woken=False,
        due=False,  # something for the leader to do that is no request
        waiting=0,
        expected=1,  # as many as the last group left waiting
        turn=NOBODY,
        writing=NOBODY,  # the thread between its write and its publication
        log=(),  # the commits in it
        synced=0,  # how many of them are on the disk
        published=(),
        done=(False,) * commits,
        next=(NOBODY,) * commits,  # whom a thread that is woken wakes
        returned=(False,) * commits,
        listening=(False,) * commits,
        group=(),
        carried=((),) * commits,  # what the thread of each commit carries
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


def commit(me: int, mutant: str, tree: int, eventual: bool) -> Program:
    """Takes the tree's lock, builds on its tip, commits: alone, if nothing is in the way, or through the queue."""
    def lock(s: State) -> bool | None:
        if s.writer_locks[tree] != NOBODY:
            return False
        s.writer_locks = put(s.writer_locks, tree, me)
        s.builds_on = put(s.builds_on, me, s.tips[tree])
        return None

    def look_at_queue(s: State) -> str | None:
        return "waiting += 1" if (s.waiting or s.expected > 1) and not eventual else None

    def try_turn(s: State) -> str | None:
        if s.turn != NOBODY:
            return "waiting += 1"
        s.turn = me
        return None

    def take_queued(s: State) -> None:
        if mutant == "a carried commit overtakes what is queued":
            s.carried = put(s.carried, me, (me,))
            return
        s.carried = put(s.carried, me, (*s.queue, me))
        s.queue = ()

    def plan(s: State) -> None:
        """Nobody else takes commits out of the queue while this thread has the turn."""

    def not_planned(s: State) -> str:
        """It is for the leader."""
        if mutant != "what couldn't be carried isn't put back":
            s.queue = s.carried[me][:-1] + s.queue
        s.bell = True
        s.turn = NOBODY
        return "waiting += 1"

    def on_queued(s: State) -> None:
        s.tips = put(s.tips, tree, me)
        s.writer_locks = put(s.writer_locks, tree, NOBODY)

    def finish(s: State) -> str:
        s.expected = 1 if eventual else s.waiting + 1
        for other in s.carried[me]:
            s.done = put(s.done, other, True)
        s.turn = NOBODY
        return "return"

    def wait_in_line(s: State) -> None:
        s.waiting += 1

    def queue(s: State) -> None:
        s.queue += (me,)

    def ring(s: State) -> str | None:
        if 0 < s.wanted <= len(s.queue) + (mutant == "the bell is rung before the commit is queued"):
            s.bell = True
            return None
        return "queued: on_queued" if mutant == "who rings says that the leader is awake" else None

    def say_awake(s: State) -> None:
        s.wanted = 0

    def listen(s: State) -> None:
        s.listening = put(s.listening, me, True)

    def handler(s: State) -> bool | None:
        return False if me == 0 and not s.returned[1] else None

    def wait(s: State) -> bool | None:
        return None if s.done[me] else False

    def wake_next(s: State) -> None:
        if s.next[me] != NOBODY and mutant != "a woken thread wakes nobody":
            s.done = put(s.done, s.next[me], True)
        s.waiting -= 1

    def check(s: State) -> None:
        if me not in s.log[: s.synced]:
            raise Flaw(f"commit {me} returns before its sync")
        if me not in s.published:
            raise Flaw(f"commit {me} returns before it is published")
        s.returned = put(s.returned, me, True)

    queueing = [("link", queue), ("bell.ring", ring)]
    if mutant == "the bell is rung before the commit is queued":
        queueing.reverse()
    if mutant == "who rings says that the leader is awake":
        queueing.append(("wanted = 0", say_awake))
    handing_over = [*queueing, ("queued: on_queued", on_queued)]
    if mutant == "the writer lock goes before the commit is queued":
        handing_over = [handing_over[-1], *queueing]
    return in_order(
        [
            ("writer lock", lock),
            ("queue.waiting", look_at_queue),
            ("turn.acquire(False)", try_turn),
            ("take_now", take_queued),
            ("plan", (plan, not_planned) if eventual else plan),
            ("carried: on_queued", on_queued),
            ("writer.write", lambda s: write(s, me, s.carried[me])),
            ("writer.sync", sync),
            ("publish", lambda s: publish(s, s.carried[me])),
            ("finish_group, turn.release", finish),
            ("waiting += 1", wait_in_line),
            *handing_over,
            *([("listen", listen)] if mutant == "a notification instead of a lock" else []),
            ("a signal handler waits", handler),
            ("done.acquire", wait),
            ("next.done.release", wake_next),
            ("return", check),
        ]
    )


def leader(me: int, mutant: str, eventual: bool) -> Program:
    """Gathers, takes what is queued once it has the turn, carries it to the disk, wakes those who wait."""

    def gather(s: State) -> str | None:
        if s.expected < 2 or len(s.queue) >= s.expected or s.rung:
            return "wait"
        s.wanted = s.expected
        return None

    def gathered(s: State) -> str | None:
        """The bell, or no other commit for as long as it waits: at any moment."""
        s.rung = s.rung or s.bell
        s.bell = False
        s.wanted = 0
        return None

    def look(s: State) -> str | None:
        if s.queue or s.rung:
            return "drain"
        if mutant != "the leader looks, and says then that it sleeps":
            s.wanted = 1
        return None

    def say_asleep(s: State) -> None:
        s.wanted = 1

    def sleep(s: State) -> bool | None:
        if not s.bell:
            return False
        s.bell = False
        return None

    def awake(s: State) -> None:
        s.wanted = 0

    def drain(s: State) -> None:
        s.bell = s.rung = s.woken = False

    def forget(s: State) -> None:
        s.rung = s.woken = False

    def silence(s: State) -> None:
        s.bell = False

    def look_again(s: State) -> str | None:
        s.due = False
        return None if s.queue else "gather"

    def take_now(s: State) -> str | None:
        s.group += s.queue
        if mutant != "the queue is copied and then emptied":
            s.queue = ()
        return None

    def empty(s: State) -> None:
        s.queue = ()

    def turn(s: State) -> bool | str | None:
        if mutant == "the leader takes no turn":
            return None
        if s.turn != NOBODY:
            return False
        s.turn = me
        return None

    def something(s: State) -> str | None:
        return None if s.group else "turn.release"

    def finish(s: State) -> None:
        s.expected = 1 if eventual else s.waiting
        last = NOBODY
        for commit in s.group:
            heard = s.listening[commit] or mutant != "a notification instead of a lock"
            direct = commit == 0 and mutant != "a thread that handles signals wakes others"
            if direct or last == NOBODY:
                s.done = put(s.done, commit, heard)
            else:
                s.next = put(s.next, last, commit)
            last = last if direct else commit
        s.group = ()

    def release(s: State) -> str:
        s.turn = NOBODY if s.turn == me else s.turn
        return "gather"

    def finalizer(s: State) -> bool | None:
        return False if mutant == "a finalizer waits for its commit in the leader" else None

    carrying = [
        ("writer.write", lambda s: write(s, me, s.group)),
        ("a finalizer", finalizer),
        ("writer.sync", sync),
        ("publish", lambda s: publish(s, s.group)),
    ]
    taking = [("turn.acquire", turn), ("take_now", take_now)]
    if mutant == "publication before the sync, and the sync after the end":
        carrying = [carrying[0], carrying[-1]]
    return in_order(
        [
            ("gather", gather),
            ("gathered", gathered),
            ("wait", look),
            *([("wanted = 1", say_asleep)] if mutant == "the leader looks, and says then that it sleeps" else []),
            ("bell.get", sleep),
            ("wanted = 0", awake),
            *(
                [("drain", forget), ("bell.silence", silence)]
                if mutant == "the GIL is given away before the bell is silenced"
                else [("drain", drain)]
            ),
            ("count", look_again),
            *(reversed(taking) if mutant == "the leader takes what is queued before its turn" else taking),
            *([("empty the queue", empty)] if mutant == "the queue is copied and then emptied" else []),
            ("something", something),
            *carrying,
            ("finish_together", finish),
            ("turn.release", release),
        ]
    )


def waker() -> Program:
    """Has something else for the leader to do, three times; each is done before the thread ends."""

    def have(s: State) -> None:
        s.due = True

    def wake_once(s: State) -> None:
        s.bell = s.bell or not s.woken
        s.woken = True

    def wait(s: State) -> bool | None:
        return None if not s.due else False

    first = [("due 1", have), ("wake_once 1", wake_once), ("due 2", have), ("wake_once 2", wake_once), ("done 2", wait)]
    return in_order([*first, ("due 3", have), ("wake_once 3", wake_once), ("done 3", wait)])


def model(
    mutant: str = "", trees: tuple[int, ...] = (0, 0, 1), wakes: bool = False, eventual: bool = False
) -> tuple[State, dict[str, Program]]:
    """A state and its programs: a commit on each of the trees named, the leader, and who else wakes it."""
    programs = {f"commit {i}": commit(i, mutant, tree, eventual) for i, tree in enumerate(trees)}
    programs["LEADER"] = leader(len(trees), mutant, eventual)
    if wakes:
        programs["waker"] = waker()
    return initial(len(trees), max(trees) + 1), programs
