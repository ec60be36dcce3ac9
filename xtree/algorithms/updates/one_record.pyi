from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.write_set import WriteSet

INSERT: int
DELETE: int
REPLACE: int

class RecordWriter:
    def __init__(self, ws: WriteSet, state: TreeState) -> None: ...
