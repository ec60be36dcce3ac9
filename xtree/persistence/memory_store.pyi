from xtree.persistence.object_table import ObjectTable
from xtree.persistence.store import Store

class MemoryStore(Store):
    def __init__(self, table: ObjectTable | None = None) -> None: ...
