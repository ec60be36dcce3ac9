"""What users write: mypy --strict and pyright accept every line."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import xtree

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

boxes: Floats = np.zeros((3, 4))
tree = xtree.XTree(dims=2)
tree.insert(1, (0.0, 0.0, 1.0, 1.0))
tree.insert(np.int64(2), boxes[0])
tree.insert_many([2, 3], [[0, 0, 1, 1], [2, 2, 3, 3]])
tree.bulk_load(np.arange(3), boxes, threads=None, skip_empty=True)
ids: Ids = tree.query((0, 0, 1, 1))
pairs: Ids = tree.query(boxes, "covered_by")
offsets, found = tree.query(boxes, output="csr")
both: tuple[Ids, Ids] = tree.query(boxes, "contains", output="csr", threads=2)
one: int = tree.count([0.0, 0.0, 1.0, 1.0])
again: int = tree.count((0, 0, 1, 1), "within")
many: Ids = tree.count(boxes)
listed: Ids = tree.count([[0.0, 0.0, 1.0, 1.0]])
near: Ids = tree.nearest((0, 0), k=5)
nearer, distances = tree.nearest(boxes[:, :2], 5, 2.0, return_distance=True)
far: Floats = distances
joined: Ids = tree.join(tree, "within")
total: int = len(tree) + tree.dims + tree.height + tree.epoch
bounds: Floats | None = tree.bounds
here: bool = (1, (0, 0, 1, 1)) in tree
gone: bool = tree.delete(1, (0, 0, 1, 1))
number: int = tree.delete_many([1], boxes[:1])
with tree.transaction(timeout=1.0) as tx:
    tx.insert(5, (1, 1))
    inside: Ids = tx.query((0, 0, 2, 2))
with tree.snapshot() as snapshot:
    epoch: int = snapshot.epoch
    frozen: Ids = snapshot.query((0, 0, 2, 2), predicate="intersects")
packed: xtree.XTree = xtree.XTree.from_boxes(boxes, ids=[1, 2, 3], path=Path("p"))
points: xtree.XTree = xtree.XTree.from_points(boxes[:, :2])
with xtree.open(b"places", dims=2, durability="strict") as durable:
    path: str | None = None if durable.runtime is None else durable.runtime.path
with xtree.Runtime(Path("atlas"), mode="a", config=xtree.Config()) as runtime:
    roads: xtree.XTree = runtime.tree("roads", dims=2)
    names: list[str] = runtime.trees()
    with runtime.transaction(trees=["roads"]) as several:
        several.tree("roads").insert(1, (0, 0, 1, 1))
        made: xtree.TransactionTree = several.make("bridges", dims=2)
