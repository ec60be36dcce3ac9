"""Mistakes of users: mypy --strict finds an error in each marked line, and in no other."""

import numpy as np
from numpy.typing import NDArray

import xtree

tree = xtree.XTree(dims=2)
boxes: NDArray[np.float64] = np.zeros((3, 4))
tree.query(boxes, "overlaps")  # wrong: call-overload
tree.query(boxes, predicate="touches")  # wrong: call-overload
tree.count(boxes, "inside")  # wrong: call-overload
tree.query(boxes, output="tuple")  # wrong: call-overload
ids: NDArray[np.int64] = tree.query(boxes, output="csr")  # wrong: assignment
first, second, third = tree.nearest((0, 0), return_distance=True)  # wrong: misc
counted: str = tree.count((0, 0, 1, 1))  # wrong: assignment
tree.insert("one", (0, 0, 1, 1))  # wrong: arg-type
tree.nearest((0, 0), k="many")  # wrong: call-overload
tree.join([1, 2])  # wrong: arg-type
tree.join(tree, "overlaps")  # wrong: arg-type
xtree.XTree()  # wrong: call-arg
xtree.XTree.from_points(boxes, dims=2)  # wrong: call-arg
xtree.open(5)  # wrong: arg-type
