"""Structure: how something that is no tree lives in a Runtime, beside the trees and in the same commits.

docs/structures.md shows how one is made; examples/page_stack.py is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn, TypeVar

from xtree.persistence.store.store import Store
from xtree.roots import register_state

__all__ = ["Structure", "StructureHandle"]

Self = TypeVar("Self", bound="Structure")


class Structure(ABC):
    """The state of one named structure at one epoch: its root page, and whatever else it must know to find its pages.

    A subclass names its `kind`, by which it is found again when an index is opened: the kind reaches the disk, so it
    never changes. Called without arguments, the subclass makes the state of an empty structure.

    root: the NodeID of the root page, 0 when there is none. Every change must give it another value, or it doesn't
    count as a change: all pages from the one that changes up to the root are copied.
    """

    kind: ClassVar[str]
    root: int

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(cls):
            register_state(cls.kind, cls)

    @classmethod
    @abstractmethod
    def decode(cls: type[Self], state: bytes, root: int) -> Self:
        """The state that `encode` turned into these bytes. Raises CorruptionError for an invalid state or root."""

    @abstractmethod
    def encode(self) -> bytes:
        """All of the state except `root`, in at most 1 MiB, which is kept in memory and in every checkpoint."""

    @abstractmethod
    def copy(self: Self) -> Self:
        """A copy, which a transaction may change."""

    @abstractmethod
    def pages(self, store: Store) -> Iterable[int]:
        """The NodeIDs of all its pages; Runtime.drop removes them."""


class StructureHandle:
    """A structure of a Runtime, or a structure as a transaction changes it. Runs functions on its state.

    Made by `Runtime.structure()` and `RuntimeTransaction.structure()`.
    """

    __slots__ = ("_read", "_write", "name")

    def __init__(self, name: str, read: Callable[..., Any], write: Callable[..., Any]) -> None:
        self.name = name
        self._read = read
        self._write = write

    def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(store, state, *arguments)`, with the epoch of `state` pinned; the function must change neither.

        Raises ClosedError, and what the function raises.
        """
        return self._read(function, *arguments)

    def write(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(write_set, state, *arguments)`, which changes pages and state: one commit, or part of one.

        An exception that the function raises undoes its changes; inside a transaction it dooms the transaction. Raises
        what a writing call of a tree may raise.
        """
        return self._write(function, *arguments)

    def __repr__(self) -> str:
        return f"<StructureHandle {self.name!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a StructureHandle can't be pickled or copied")
