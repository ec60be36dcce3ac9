"""Dumps as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

__all__ = ["dump_lines"]


def dump_lines(result: dict[str, Any]) -> Iterator[str]:
    """All parts of what dump_index returned, and at the end what couldn't be read."""
    if "superblock" in result:
        yield from _superblock(result["superblock"])
    if "manifest" in result:
        yield from _manifest(result["manifest"])
    for checkpoint in result.get("checkpoints", ()):
        yield from _checkpoint(checkpoint)
    if result.get("logs") == []:
        yield "no logs: the index was closed"
    for log in result.get("logs", ()):
        yield from _log(log)
    for page in result.get("pages", ()):
        yield from _page(page)
    for name, tree in result.get("trees", {}).items():
        yield from _tree(name, tree)
    for problem in result["problems"]:
        yield f"PROBLEM: {problem}"


def _superblock(superblock: dict[str, Any]) -> Iterator[str]:
    yield superblock["file"]
    for number, copy in enumerate(superblock["copies"]):
        if copy["readable"]:
            counts = ", the one that counts" if copy["counts"] else ""
            yield f"  copy {number} at {copy['offset']}: generation {copy['generation']}{counts}"
            yield (
                f"    uuid {copy['uuid']}, {copy['mode']}, epoch {copy['epoch']}, "
                f"durable {copy['durable_epoch']}, ceiling {copy['epoch_ceiling']}"
            )
        else:
            yield f"  copy {number} at {copy['offset']}: {copy['error']}"


def _manifest(manifest: dict[str, Any]) -> Iterator[str]:
    yield manifest["file"] if manifest["readable"] else f"{manifest['file']}: {manifest['error']}"
    if "uuid" in manifest:
        origin = "" if manifest["from"] == "file" else "from a scan of the directory: "
        yield f"  {origin}uuid {manifest['uuid']}, generation {manifest['generation']}, config {manifest['config']}"
        for entry in manifest["checkpoints"]:
            crc = f"CRC {entry['crc']:#010x}"
            yield f"  checkpoint {entry['number']}: epoch {entry['epoch']}, {entry['bytes']} bytes, {crc}"
        for entry in manifest["logs"]:
            end = entry["closed"]
            yield f"  log {entry['number']}: " + (
                "open" if end is None else f"ends at {end['end_offset']}, epoch {end['last_epoch']}"
            )
        for entry in manifest["data_files"]:
            synced = f"{entry['synced_bytes']} bytes synced"
            yield f"  data file {entry['number']}: size class {entry['size_class']}, {synced}"
        yield f"  next number {manifest['next_number']}"
    for name in manifest["unlisted"]:
        yield f"  not listed: {name}"


def _checkpoint(checkpoint: dict[str, Any]) -> Iterator[str]:
    unlisted = "" if checkpoint["listed"] else ", which the manifest doesn't list"
    yield f"{checkpoint['file']}{unlisted}"
    if not checkpoint["readable"]:
        yield f"  {checkpoint['error']}"
        return
    log = checkpoint["last_log"]
    yield f"  epoch {checkpoint['epoch']}, {checkpoint['bytes']} bytes, CRC {checkpoint['crc']:#010x}"
    yield f"  after log {log['number']}, which ended at {log['end_offset']} with epoch {log['last_epoch']}"
    rows = checkpoint["rows"]
    if "error" in rows:
        yield f"  rows: {rows['error']}"
    else:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in rows["by_kind"].items())
        births = f", born in epochs {rows['first_birth']} to {rows['last_birth']}" if "first_birth" in rows else ""
        yield f"  rows: {rows['handles']:,} handles, {rows['live']:,} live ({kinds}){births}"
    for entry in checkpoint["catalog"]:
        size = f": {entry['records']:,} records, {entry['dims']} dims" if "records" in entry else ""
        yield f"  {entry['kind']} {entry['name']!r}, root {entry['root']:#x}{size}"


def _log(log: dict[str, Any]) -> Iterator[str]:
    follows = "no frame yet" if log["follows"] is None else f"follows log {log['follows']}"
    listed = "" if log["listed"] else ", not listed"
    yield f"{log['file']}: {log['bytes']} bytes, {follows}, {log['groups']:,} groups{listed}"
    for frame in log.get("frames", ()):
        yield _frame(frame)
        for delta in frame.get("deltas_listed", ()):
            yield _delta(delta)
    if log["ends"] is not None:
        tail = f", {log['tail_bytes']} bytes behind it" if log["tail_bytes"] else ""
        yield f"  ends at {log['ends']} with epoch {log['last_epoch']}: {log['stopped_because']}{tail}"
    if log["error"] is not None:
        yield f"  {log['error']}"


def _frame(frame: dict[str, Any]) -> str:
    written = datetime.fromtimestamp(frame["time_ns"] // 10**9, timezone.utc)
    state = "" if frame["crc_right"] else ", CRC WRONG"
    chain = "" if frame["linked"] else ", not linked"
    epochs = f"{frame['first_epoch']}..{frame['last_epoch']}"
    return (
        f"  {frame['offset']:>10}  {frame['kind']:5}  {frame['mode']:8}  epochs {epochs}  "
        f"durable {frame['durable_through']}  {frame['deltas']} deltas  {frame['catalog']} catalog  "
        f"{frame['bytes']} bytes  {written:%Y-%m-%d %H:%M:%S}{state}{chain}"
    )


def _delta(delta: dict[str, Any]) -> str:
    if delta["op"] == "retire":
        return f"              retire {delta['node']:#x}, epoch {delta['epoch']}"
    replaces = f", replaces {delta['replaces']:#x}" if delta["replaces"] else ""
    return (
        f"              {delta['op']} {delta['node']:#x}, epoch {delta['epoch']}, kind {delta['kind']}, "
        f"{delta['file']} at {delta['offset']}, CRC {delta['crc']:#010x}{replaces}, "
        f"payload {delta['payload']} of {delta['payload_bytes']} bytes"
    )


def _page(page: dict[str, Any]) -> Iterator[str]:
    where = "in memory, from a log" if page["file"] is None else f"{page['file']}, offset {page['offset']}"
    yield f"{where}: {'the live page' if page['live'] else 'not live'}"
    if page["row"] is not None:
        row = page["row"]
        crc = f"CRC {row['crc']:#010x}"
        yield f"  row: born in epoch {row['birth']}, {crc}, kind {row['kind']}, class {row['size_class']}"
    if page["header"] is not None:
        header = page["header"]
        computed = header["computed_crc"]
        right = "right" if header["crc"] == computed else f"WRONG, {computed:#010x} computed"
        yield (
            f"  header: node {header['node']:#x}, kind {header['kind']}, class {header['size_class']}, "
            f"format {header['format']}, flags {header['flags']}, CRC {header['crc']:#010x} ({right})"
        )
    if page["error"] is not None:
        yield f"  {page['error']}"
    if page["page"] is not None:
        yield from _entries(page["page"])


def _entries(page: dict[str, Any]) -> Iterator[str]:
    blocks = f", {page['blocks']} blocks" if page["blocks"] > 1 else ""
    yield f"  {page['kind']} of level {page['level']}, {page['dims']} dims, {page['count']:,} entries{blocks}"
    leaf = page["kind"] == "leaf"
    for i, (box, ref) in enumerate(zip(page["boxes"], page["refs"], strict=True)):
        history = "" if leaf else f", split along {page['history'][i]:#b}"
        yield f"    {i}: {'id' if leaf else 'node'} {ref if leaf else hex(ref)}, box {box}{history}"
    if page["count"] > len(page["refs"]):
        yield f"    and {page['count'] - len(page['refs']):,} more"


def _tree(name: str, tree: dict[str, Any]) -> Iterator[str]:
    yield (
        f"tree {name!r}: {tree['records']:,} records, {tree['dims']} dims, height {tree['height']}, "
        f"root {tree['root']:#x}, bounds {tree['bounds']}"
    )
    for level in tree["levels"]:
        line = f"  level {level['level']}: {level['nodes']:,} pages, {level['entries']:,} entries"
        if level["fill"] is not None:
            line += f", fill {level['fill']:.0%}, overlap {level['overlap']:.1%}"
        line += f", {level['supernodes']} supernodes" if level["supernodes"] else ""
        unreadable = level.get("unreadable", 0)
        yield line + (f", {unreadable} UNREADABLE" if unreadable else "")
    if tree["outline"] is not None:
        yield from _outline(tree["outline"], "  ")


def _outline(page: dict[str, Any], indent: str) -> Iterator[str]:
    box = ", ".join(f"{number:.6g}" for number in page["box"])
    if page["error"] is not None:
        yield f"{indent}{page['node']:#x} [{box}]: {page['error']}"
        return
    blocks = f", supernode of {page['blocks']} blocks" if page["blocks"] > 1 else ""
    yield f"{indent}{page['node']:#x} [{box}]: level {page['level']}, {page['count']} entries{blocks}"
    for child in page["children"]:
        yield from _outline(child, indent + "  ")
