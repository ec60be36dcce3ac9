"""The writer that test_structures.py kills: trees and stacks change together, or one after the other.

    python stack_writer.py DIRECTORY FIRST_STEP
"""

import sys
from pathlib import Path

import xtree

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
from page_stack import PageStack, StackState, push

__all__ = ["PageStack", "StackState", "item", "push"]

MODES = ("strict", "balanced", "eventual")


def item(number: int) -> bytes:
    """The item that a step pushes: from a few bytes to most of a page."""
    return b"%d " % number + b"x" * (number * 37 % 2000)


def main(path: str, first: int) -> None:
    with xtree.Runtime(path, durability=MODES[first % 3]) as runtime:
        runtime.tree("together", dims=2)
        alone = runtime.tree("alone", dims=2)
        runtime.structure("stack together", StackState)
        stack = PageStack(runtime.structure("stack alone", StackState))
        number = first
        while True:
            with runtime.transaction(trees=["together", "stack together"]) as tx:
                tx.tree("together").insert(number, (number, 0))
                both = PageStack(tx.structure("stack together"))
                both.push(item(number))
                if number % 4 == 3:
                    both.pop()
                    tx.tree("together").delete(number, (number, 0))
            stack.push(item(number))
            alone.insert(number, (number, 0))
            if number % 3 == 2:
                stack.pop()
                alone.delete(number, (number, 0))
            if number % 50 == 49:
                runtime.checkpoint()
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            number += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
