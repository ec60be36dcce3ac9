"""A structure that is no tree: a persistent stack of byte strings that shares a directory and commits with an X-tree.

A page holds many items and links to the page below. The state is the page on top and the number of items.
"""

import struct
import tempfile
from pathlib import Path

import xtree

PAGE_KIND = 130                         # kinds from 128 on are free to use
ROOM = 4096 - 24                        # of a page of size class 0, after its header
HEAD = struct.Struct("<QHH")            # NodeID of the page below, items, bytes used; then each item and its length
LENGTH = struct.Struct("<H")
LONGEST = ROOM - HEAD.size - LENGTH.size


class StackState(xtree.Structure):
    """A stack at one epoch."""

    kind = "page-stack"

    def __init__(self, root=0, count=0):
        self.root = root
        self.count = count

    @classmethod
    def decode(cls, state, root):
        if len(state) != 8:
            raise xtree.CorruptionError(f"state of a stack: expected 8 bytes, found {len(state)}")
        found = cls(root, *struct.unpack("<Q", state))
        if (found.root == 0) != (found.count == 0):
            raise xtree.CorruptionError(f"state of a stack: {found.count} items, and root {found.root:#x}")
        return found

    def encode(self):
        return struct.pack("<Q", self.count)

    def copy(self):
        return StackState(self.root, self.count)

    def pages(self, store):
        node = self.root
        while node:
            yield node
            node = HEAD.unpack_from(store.read_page(node))[0]


def push(write_set, state, item):
    below, items, used = state.root, 0, HEAD.size
    if state.root:
        page = write_set.store.read_page(state.root)
        head = HEAD.unpack_from(page)
        if head[2] + len(item) + LENGTH.size <= ROOM:
            below, items, used = head
    content = (page[HEAD.size:used] if items else b"") + item + LENGTH.pack(len(item))
    content = HEAD.pack(below, items + 1, HEAD.size + len(content)) + content
    if items:
        state.root = write_set.replace_page(state.root, content)
    else:
        state.root = write_set.add_page(PAGE_KIND, 0, content)
    state.count += 1


def pop(write_set, state):
    if not state.root:
        return None
    item = top(write_set.store, state)
    below, items, used = HEAD.unpack_from(write_set.store.read_page(state.root))
    if items == 1:
        write_set.remove_page(state.root)
        state.root = below
    else:
        head = HEAD.pack(below, items - 1, used - len(item) - LENGTH.size)
        state.root = write_set.replace_page(state.root, head)
    state.count -= 1
    return item


def top(store, state):
    if not state.root:
        return None
    page = store.read_page(state.root)
    end = HEAD.unpack_from(page)[2] - LENGTH.size
    return page[end - LENGTH.unpack_from(page, end)[0]:end]


def everything(store, state):
    """All items, the one on top first."""
    found = []
    for node in state.pages(store):
        page = store.read_page(node)
        end = HEAD.unpack_from(page)[2]
        while end > HEAD.size:
            end -= LENGTH.size
            length = LENGTH.unpack_from(page, end)[0]
            found.append(page[end - length:end])
            end -= length
    return found


class PageStack:
    """A stack on a handle: PageStack(runtime.structure(name, StackState)), or PageStack(tx.structure(name))."""

    def __init__(self, handle):
        self.handle = handle

    def push(self, item):
        if len(item) > LONGEST:
            raise ValueError(f"an item has up to {LONGEST} bytes, not {len(item)}")
        self.handle.write(push, bytes(item))

    def pop(self):
        """The item on top, which is removed; None when there is none."""
        return self.handle.write(pop)

    def peek(self):
        return self.handle.read(top)

    def __iter__(self):
        return iter(self.handle.read(everything))

    def __len__(self):
        return self.handle.read(lambda store, state: state.count)


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "atlas"
        with xtree.Runtime(path) as runtime:
            cities = runtime.tree("cities", dims=2)
            history = PageStack(runtime.structure("history", StackState))
            for number in range(1000):                              # one commit for the tree and the stack
                with runtime.transaction(trees=["cities", "history"]) as tx:
                    tx.tree("cities").insert(number, (number, number))
                    PageStack(tx.structure("history")).push(b"inserted %d" % number)
            undone = history.pop()
        with xtree.Runtime(path) as runtime:
            cities, history = runtime.tree("cities"), PageStack(runtime.structure("history", StackState))
            print(f"{len(cities)} cities; {len(history)} entries in the history, {undone} taken back")
            assert (len(cities), len(history), history.peek()) == (1000, 999, b"inserted 998")
            runtime.check()


if __name__ == "__main__":
    main()
