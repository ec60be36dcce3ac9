"""Transactions: changes to one tree, or to several, that become visible together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from xtree.arguments import Boxes, as_name
from xtree.errors import TransactionError
from xtree.reading import Reader
from xtree.structure import StructureHandle
from xtree.write_scope import TreeScope, WriteScope
from xtree.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xtree.forest import Forest
    from xtree.runtime import Runtime
    from xtree.tree import XTree

__all__ = ["RuntimeTransaction", "Transaction", "TransactionTree"]


class Transaction(TreeScope, Writer):
    """Changes to one tree, committed at the end of the with block, or forgotten when it is left by an exception.

    Made by `XTree.transaction()`. Has every reading and writing method of the tree and sees its own writes. Refused
    input leaves it usable; an error while pages are being changed (OSError, MemoryError) dooms it: from then on it can
    only abort. One thread at a time may use it; a second one gets TransactionError.

    status: "new", "open", "committed", "aborted", or "failed" when a failing disk leaves the outcome unknown.
    """

    def __init__(self, tree: XTree, timeout: float | None) -> None:
        super().__init__(tree._session, tree._lock, tree._view, timeout, tree)

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._read_tree(self._name, function, *arguments)

    def _write(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._write_tree(self._name, function, *arguments)

    def _epoch(self) -> int:
        return self._base_epoch

    def __repr__(self) -> str:
        tree = self._owner
        return f"<Transaction, {self.status}>" if tree is None else f"<Transaction on {tree!r}, {self.status}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Transaction can't be pickled or copied")


class RuntimeTransaction(WriteScope):
    """Changes to several trees of a Runtime that become one commit.

    Made by `Runtime.transaction()`; behaves like Transaction, but `tree(name)` has the methods of a tree.
    """

    def __init__(self, runtime: Runtime, names: Iterable[str], timeout: float | None) -> None:
        forest = runtime._forest
        locks = tuple(forest.lock_of(name) for name in sorted(set(names)))
        super().__init__(forest.session, locks, None, timeout, runtime)
        self._made: set[str] = set()

    def make(self, name: str, dims: int) -> TransactionTree:
        """Makes a tree. This transaction sees it at once; others see it after the commit.

        dims: number of dimensions, 1 to 64. Raises ValueError when the name is taken, TransactionError when another
        thread is making or dropping it, TypeError, and what `Runtime.tree` raises for bad arguments.
        """
        name = as_name(name)
        _ = self._base_epoch  # it must have begun before a lock of the name is made
        self._open_forest().make_in(self, name, dims)
        self._made.add(name)
        return TransactionTree(self, name)

    def tree(self, name: str) -> TransactionTree:
        """A tree as this transaction changes it.

        A tree that wasn't listed is added if no other thread is writing to it. Raises TransactionError when one is,
        KeyError when there is no such tree, ValueError for a structure that is no tree.
        """
        self._take(name, True)
        return TransactionTree(self, name)

    def structure(self, name: str) -> StructureHandle:
        """A structure that is no tree, as this transaction changes it. Raises what `tree` does."""
        self._take(name, False)
        return StructureHandle(name, partial(self._read_tree, name), partial(self._write_tree, name))

    def _open_forest(self) -> Forest:
        runtime = self._owner
        if runtime is None:
            raise TransactionError(f"the transaction is {self.status}")
        forest: Forest = runtime._forest
        return forest

    def _take(self, name: str, tree: bool) -> None:
        forest = self._open_forest()
        lock = None if name in self._made else forest.lock_of(name)
        if (lock is None or forest.is_tree(name)) != tree:
            raise ValueError(f"{name!r} is {'no tree' if tree else 'a tree'}")
        if lock is not None:
            self._touch(lock)

    def __repr__(self) -> str:
        return f"<RuntimeTransaction, {self.status}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RuntimeTransaction can't be pickled or copied")


class TransactionTree(Writer):
    """One tree inside a RuntimeTransaction: every reading and writing method; it sees the transaction's own writes."""

    __slots__ = ("_dims", "_name", "_transaction")

    def __init__(self, transaction: RuntimeTransaction, name: str) -> None:
        self._transaction = transaction
        self._name = name
        self._dims = self.dims

    @property
    def name(self) -> str:
        """The tree's name."""
        return self._name

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._transaction._read_tree(self._name, function, *arguments)

    def _write(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._transaction._write_tree(self._name, function, *arguments)

    def _write_one(self, what: int, id: SupportsIndex, box: Boxes, new_box: Boxes | None = None) -> bool:
        return self._transaction._write_one_in(self._name, self._dims, what, id, box, new_box)

    def _read_both(self, other: Reader, function: Callable[..., Any], *arguments: Any) -> Any:
        if not isinstance(other, TransactionTree) or other._transaction is not self._transaction:
            return super()._read_both(other, function, *arguments)
        state = other._read(lambda store, state: state)  # the transaction's own, which it goes on changing
        return self._read(lambda store, mine: function(store, mine, store, state, *arguments))

    def _epoch(self) -> int:
        return self._transaction._base_epoch

    def __repr__(self) -> str:
        return f"<tree {self._name!r} in {self._transaction!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a tree inside a transaction can't be pickled or copied")
