from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.store.store import Store

class MemoryStore(Store):
    def __init__(self, table: ObjectTable | None = None) -> None: ...
