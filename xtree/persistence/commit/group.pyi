from xtree.persistence.commit.commit_queue import Request
from xtree.persistence.files.log_frame import LogFrame, LogTail
from xtree.persistence.store.catalog import Catalog
from xtree.persistence.store.store import Store
from xtree.persistence.store.write_set import WriteSet

class Group:
    @property
    def requests(self) -> list[Request]: ...
    @property
    def write_sets(self) -> list[WriteSet]: ...
    @property
    def frame(self) -> LogFrame: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def first_epoch(self) -> int: ...
    @property
    def last_epoch(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def started(self) -> float: ...

def plan_group(
    store: Store,
    requests: list[Request],
    tail: LogTail,
    first_epoch: int,
    durable_through: int,
    file_numbers: list[int],
) -> Group: ...
