from typing import Any

from xtree.persistence.store import Store
from xtree.tree_state import TreeState

def check(store: Store, state: TreeState) -> None: ...
def stats(store: Store, state: TreeState) -> dict[str, Any]: ...
