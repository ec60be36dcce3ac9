from xtree.persistence.store import Store

class MemoryStore(Store):
    def __init__(self) -> None: ...
