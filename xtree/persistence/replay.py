"""Replay: object-table rows, catalog and page images, brought forward frame by frame.

Rows live in one array, indexed by handle, as a checkpoint stores them. Page images stay in memory until the last frame
is read: the image of a page that is retired later is dropped, so memory is bounded by live pages and by the log.
"""

from __future__ import annotations

import numpy as np

from xtree.errors import CorruptionError
from xtree.persistence.catalog import Catalog, decode_changes
from xtree.persistence.checkpoint import ROW
from xtree.persistence.file_header import HEADER_BYTES
from xtree.persistence.filenames import SIZE_CLASSES
from xtree.persistence.frame import OP_RETIRE, PAYLOAD_WHOLE, Frame

FREE, LIVE = 0, 2  # states of a stored row
EPOCH_INFINITE = 2**64 - 1
PAGE_BYTES = np.array([4096 << size_class for size_class in range(SIZE_CLASSES)], dtype=np.uint64)


class Replay:
    """The state that recovery brings forward. Every error names the log and the offset of the frame."""

    def __init__(
        self, rows: np.ndarray, catalog: Catalog, epoch: int, classes: dict[int, int], window_bytes: int
    ) -> None:
        self.rows = rows
        self.catalog = catalog
        self.epoch = epoch
        self.images: dict[int, bytes] = {}  # by NodeID, of live pages whose payload a log holds
        self.born: set[int] = set()  # live pages that a log has brought in
        self.frames = 0
        self.deltas = 0
        self._window_bytes = window_bytes
        self._classes = np.full(max(classes, default=0) + 1, 255, dtype=np.uint8)  # by file number
        for number, size_class in classes.items():
            self._classes[number] = size_class
        # A handle is only ever given out together with a slot, so there are no more than slots in all windows.
        self._most_rows = len(rows) + 1 + sum(window_bytes // (4096 << size_class) for size_class in classes.values())

    def apply(self, frame: Frame) -> None:
        """One frame: births, then retirements, then the catalog. Raises CorruptionError."""
        where = f"{frame.path}: at offset {frame.offset}"
        if frame.first_epoch <= self.epoch:
            raise CorruptionError(f"{where}: expected an epoch after {self.epoch}, found {frame.first_epoch}")
        deltas = frame.deltas
        for k in range(len(deltas)):
            one = deltas[k : k + 1]
            if one["op"][0] == OP_RETIRE:
                self._retire(one, where)
                continue
            base = self.images.get(int(one["replaces"][0]))
            if one["replaces"][0]:
                gone = one.copy()
                gone["node_id"] = one["replaces"]
                self._retire(gone, where)
            self._bear(one, frame.payloads, where)
            if one["payload_form"][0] == 2:
                image = bytearray(base)
                at, end = int(one["payload_offset"][0]), int(one["payload_offset"][0] + one["payload_bytes"][0])
                while at < end:
                    first, count = np.frombuffer(frame.payloads[at : at + 4], "<u2").tolist()
                    image[8 * first : 8 * (first + count)] = frame.payloads[at + 4 : at + 4 + 8 * count]
                    at += 4 + 8 * count
                image[4:8] = int(one["page_crc"][0]).to_bytes(4, "little")
                image[8:16] = int(one["node_id"][0]).to_bytes(8, "little")
                self.images[int(one["node_id"][0])] = bytes(image)
        self.catalog = self.catalog.with_changes(decode_changes(frame.catalog, frame.path, frame.catalog_offset))
        self.epoch = frame.last_epoch
        self.frames += 1
        self.deltas += len(deltas)

    def _bear(self, births: np.ndarray, payloads: memoryview, where: str) -> None:
        if not len(births):
            return
        nodes = births["node_id"]
        handles, tags = nodes >> np.uint64(8), (nodes & np.uint64(255)).astype(np.uint8)
        last = int(handles.max())
        if last >= self._most_rows or not handles.all() or not tags.all():
            raise CorruptionError(f"{where}: a delta names handle {last}; there are at most {self._most_rows}")
        if last >= len(self.rows):
            rows = np.zeros(min(self._most_rows, max(last + 1, 2 * len(self.rows))), dtype=ROW)
            rows[: len(self.rows)] = self.rows
            self.rows = rows
        if len(np.unique(handles)) != len(handles) or (self.rows["state"][handles] != FREE).any():
            raise CorruptionError(f"{where}: a page is born under a handle that is in use")
        require_places(
            births["file_number"], births["size_class"], births["offset"], self._classes, self._window_bytes, where
        )
        born = np.zeros(len(births), dtype=ROW)
        born["state"], born["tag"], born["retire"] = LIVE, tags, EPOCH_INFINITE
        for target, source in (
            ("kind", "kind"),
            ("size_class", "size_class"),
            ("file_number", "file_number"),
            ("offset", "offset"),
            ("birth", "epoch"),
            ("crc", "page_crc"),
        ):
            born[target] = births[source]
        self.rows[handles] = born
        self.born.update(nodes.tolist())
        whole = births[births["payload_form"] == PAYLOAD_WHOLE]
        for node, start, size in zip(
            whole["node_id"].tolist(), whole["payload_offset"].tolist(), whole["payload_bytes"].tolist(), strict=True
        ):
            self.images[node] = bytes(payloads[start : start + size])

    def _retire(self, retirements: np.ndarray, where: str) -> None:
        if not len(retirements):
            return
        nodes = retirements["node_id"]
        handles, tags = nodes >> np.uint64(8), (nodes & np.uint64(255)).astype(np.uint8)
        known = int(handles.max()) < len(self.rows) and len(np.unique(handles)) == len(handles)
        if not known or (self.rows["state"][handles] != LIVE).any() or (self.rows["tag"][handles] != tags).any():
            raise CorruptionError(f"{where}: a page is retired that isn't live")
        gone = np.zeros(len(handles), dtype=ROW)
        gone["tag"] = tags
        self.rows[handles] = gone
        for node in nodes.tolist():
            self.born.discard(node)
            self.images.pop(node, None)


def require_places(
    files: np.ndarray, size_classes: np.ndarray, offsets: np.ndarray, classes: np.ndarray, window_bytes: int, where: str
) -> None:
    """Every row's slot is in a file of its class, aligned, and inside the window. Raises CorruptionError."""
    if (files >= len(classes)).any() or (size_classes >= SIZE_CLASSES).any() or (classes[files] != size_classes).any():
        raise CorruptionError(f"{where}: a row names a data file that isn't there, or of another size class")
    sizes = PAGE_BYTES[size_classes]
    low = offsets < HEADER_BYTES
    # Sizes are powers of two.
    if low.any() or (offsets > window_bytes - sizes).any() or ((offsets - np.uint64(HEADER_BYTES)) & (sizes - 1)).any():
        raise CorruptionError(f"{where}: a row's slot is misaligned or outside its file")
