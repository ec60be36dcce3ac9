from xtree.persistence.store import Store
from xtree.tree_state import TreeState

class SubtreeChooser:
    def __init__(self, store: Store, state: TreeState) -> None: ...
