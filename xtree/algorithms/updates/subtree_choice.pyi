from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.store import Store

class SubtreeChooser:
    def __init__(self, store: Store, state: TreeState) -> None: ...
