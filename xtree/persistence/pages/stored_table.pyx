"""The object table as a checkpoint stores it: the tags of all handles, and the rows visible at its epoch.

A table is restored before anyone else sees it. A snapshot is taken at a pinned epoch; meanwhile other threads may
reserve rows, but nobody publishes, retires or reclaims any.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.pages.file_places cimport FilePlaces
from xtree.persistence.base.memory cimport allocate, prefault, release
from xtree.persistence.pages.node_id cimport MAX_SHARDS, handle_of, make_handle, make_node_id
from xtree.persistence.pages.object_table cimport BLOCK_ROWS, WORD_TAG, ObjectTable, Row, bad_row
from xtree.persistence.pages.stored_row cimport StoredRow, is_visible, load_row, store_row

from xtree.errors import CorruptionError

ROW_BYTES = sizeof(StoredRow)
assert ROW_BYTES == 32


def restore_table(ObjectTable table not None, uint64_t epoch, handles, tags, rows, FilePlaces places not None):
    """Loads a checkpoint of an epoch into an empty table: how many handles each shard has, their tags, live rows.

    Each row must have a handle of its shard, above that of the row before it, and the tag of that handle. Its slot must
    lie in a file of its class, aligned, and within the largest size of the file. Raises CorruptionError when a row
    doesn't, and MemoryError; after an error the table is of no use.
    """
    cdef Py_buffer tag_view, row_view
    cdef uint64_t shard, count, at = 0
    cdef const StoredRow *stored
    cdef const StoredRow *end
    if table.high_water != 1:
        raise RuntimeError("rows can be restored into an empty table only")
    handles = list(map(int, handles))
    _require_room(table, handles)
    PyObject_GetBuffer(tags, &tag_view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(rows, &row_view, PyBUF_SIMPLE)
        try:
            if sum(handles) != tag_view.len or row_view.len % ROW_BYTES:
                raise CorruptionError(f"object table: {tag_view.len} tags of {sum(handles)} handles, "
                                      f"{row_view.len} bytes of rows of {ROW_BYTES}")
            stored = <const StoredRow *>row_view.buf
            end = stored + row_view.len // <Py_ssize_t>sizeof(StoredRow)
            for shard, count in enumerate(handles):
                with nogil:
                    _restore(table, places, epoch, shard, <const uint8_t *>tag_view.buf + at, count, &stored, end)
                at += count
            if stored != end:
                bad_row(handle_of(stored.node_id), "out of order, or of a handle that was never given out")
        finally:
            PyBuffer_Release(&row_view)
    finally:
        PyBuffer_Release(&tag_view)


def snapshot_table(ObjectTable table not None, uint64_t epoch, list file_of_window):
    """(handles of each shard, their tags, live rows) of a checkpoint; live rows are those visible at its epoch.

    `file_of_window` gives the number of each window's data file. Raises CorruptionError, MemoryError.
    """
    cdef uint32_t windows = len(file_of_window)
    cdef uint64_t shard, total = 0
    # If nothing that the epoch sees has been reclaimed.
    cdef uint64_t most = table.live_count + table.retired_rows.count
    cdef uint64_t handles[MAX_SHARDS]
    cdef bytearray tags, rows
    cdef uint8_t *tag
    cdef StoredRow *out
    cdef StoredRow *end
    cdef uint32_t *files = <uint32_t *>allocate(windows * sizeof(uint32_t))
    if files == NULL:
        raise MemoryError("no memory for the table of data files")
    try:
        for window, file_number in enumerate(file_of_window):
            files[window] = file_number
        for shard in range(MAX_SHARDS):
            handles[shard] = load_acquire(&table.marks[shard]) - 1
            total += handles[shard]
        tags = PyByteArray_FromStringAndSize(NULL, total)
        rows = PyByteArray_FromStringAndSize(NULL, most * sizeof(StoredRow))
        tag = <uint8_t *>PyByteArray_AS_STRING(tags)
        out = <StoredRow *>PyByteArray_AS_STRING(rows)
        end = out + most
        with nogil:
            for shard in range(MAX_SHARDS):
                _snapshot(table, shard, handles[shard], epoch, files, windows, tag, &out, end)
                tag += handles[shard]
        PyByteArray_Resize(rows, <char *>out - PyByteArray_AS_STRING(rows))
    finally:
        release(files)
    return [handles[shard] for shard in range(MAX_SHARDS)], tags, rows


cdef int _require_room(ObjectTable t, list handles) except -1:
    cdef uint64_t shard
    for shard, count in enumerate(handles):
        if count and (shard >= t.max_shards or not 0 < count < t.shard_slots):
            raise CorruptionError(f"object table: {count} handles in shard {shard}, expected up to {t.shard_slots - 1} "
                                  f"in each of {t.max_shards}")
    return 0


# Fills a shard, and moves `stored` past the live rows of the shard, as long as they come in order.
cdef int _restore(ObjectTable t, FilePlaces places, uint64_t epoch, uint64_t which, const uint8_t *tags, uint64_t count,
                  const StoredRow **stored, const StoredRow *end) except -1 nogil:
    cdef const StoredRow *following = stored[0]
    cdef const char *wrong
    cdef uint64_t slot = 1, behind, handle
    cdef Row *row
    t.cover(which, count + 1)
    while slot <= count:
        behind = min(count, slot | (BLOCK_ROWS - 1)) + 1
        prefault(t.row(make_handle(which, slot)), (behind - slot) * sizeof(Row))
        slot = behind
    for slot in range(1, count + 1):
        handle = make_handle(which, slot)
        row = t.row(handle)
        if following < end and handle_of(following.node_id) == handle:
            wrong = load_row(following, tags[slot - 1], epoch, places, row)
            if wrong != NULL:
                return bad_row(handle, wrong)
            t.live_count += 1
            following += 1
        else:
            row.word = tags[slot - 1]
            t.free_row(handle, row)
    stored[0] = following
    return 0


# Stores the tags of a shard, and the rows visible at an epoch at `out`, which moves past them.
cdef int _snapshot(ObjectTable t, uint64_t which, uint64_t count, uint64_t epoch, const uint32_t *files,
                   uint32_t windows, uint8_t *tags, StoredRow **out, StoredRow *end) except -1 nogil:
    cdef StoredRow *place = out[0]
    cdef const char *wrong
    cdef uint64_t slot, handle, word
    cdef Row *row
    for slot in range(1, count + 1):
        handle = make_handle(which, slot)
        row = t.row(handle)
        word = load_acquire(&row.word)
        tags[slot - 1] = word & WORD_TAG
        if not is_visible(row, word, epoch):
            continue
        if place == end:
            return bad_row(handle, "visible, and not counted")
        wrong = store_row(row, word, make_node_id(handle, word & WORD_TAG), files, windows, place)
        if wrong != NULL:
            return bad_row(handle, wrong)
        place += 1
    out[0] = place
    return 0
