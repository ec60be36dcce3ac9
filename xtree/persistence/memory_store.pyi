from typing import Any

from xtree.persistence.store import Store

class MemoryStore(Store):
    def __init__(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...
