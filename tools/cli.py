"""The command `xtree`: build, query, info, check, fsck, dump, backup and demo.

Exit status: 0 fine, 1 found something (corruption, a failed check), 2 wrong usage or a request that can't be met, 130
interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from tqdm import tqdm

import xtree
from xtree.arguments import QUERY_PREDICATES
from xtree.persistence.base.progress import Progress
from xtree.reading import Predicate
from xtree.tools.backup import backup_index
from xtree.tools.build import build_index
from xtree.tools.check import check_index
from xtree.tools.cli_errors import FOUND, Interruptible, clear_errors
from xtree.tools.csv_columns import Wanted
from xtree.tools.describe import describe_index, plain
from xtree.tools.dump import WHAT, dump_index
from xtree.tools.dump.text import dump_lines
from xtree.tools.fsck import fsck
from xtree.tools.fsck.repair import repair
from xtree.tools.fsck.text import check_lines, report_lines, salvage_lines
from xtree.tools.salvage import salvage_index

__all__ = ["main"]


as_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of text.")
tree_name = click.option("--tree", default="default", show_default=True, help="Name of the tree inside the index.")
index_path = click.argument("path", type=click.Path(path_type=Path))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(plain(value)))


def _size(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e6:,.1f} MB" if count >= 1_000_000 else f"{count / 1e3:,.0f} kB"


@click.group(cls=Interruptible, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(xtree.__version__, prog_name="xtree")
def main() -> None:
    """A spatial index for points and boxes, in memory or crash-safe on disk.

    Exit status: 0 fine, 1 found something (corruption, a failed check), 2 wrong usage or a request that can't be met,
    130 interrupted.
    """


@main.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@index_path
@click.option("--append", is_flag=True, help="Add to the index when it exists already.")
@click.option("--points", is_flag=True, help="The arrays of SOURCE hold points (n, d), not boxes (n, 2*d).")
@click.option("--box", metavar="A,B,C,D", default="", help="The columns of boxes: all minima, then all maxima.")
@click.option("--x", metavar="NAME", default="", help="The column of a point's first coordinate; with --y.")
@click.option("--y", metavar="NAME", default="", help="That of the second.")
@click.option("--z", metavar="NAME", default="", help="That of the third, if there is one.")
@click.option("--id", "id_column", metavar="NAME", default="", help="The column of ids; - numbers the records from 0.")
@click.option("--encoding", help="What SOURCE is written in, as latin-1 or utf-16.  [default: utf-8]")
@tree_name
@as_json
@clear_errors
def build(
    source: Path,
    path: Path,
    append: bool,
    points: bool,
    box: str,
    x: str,
    y: str,
    z: str,
    id_column: str,
    encoding: str | None,
    tree: str,
    json_output: bool,
) -> None:
    """Build the index PATH from SOURCE, a .csv, .tsv, .npy or .npz file.

    A CSV file, also as .gz, needs a first line of column names: minx,miny,maxx,maxy (xmin, x_min, left … too) or
    lon,lat or x,y[,z], in any order, and id (fid, osm_id …) if the records have ids; other columns are passed over.
    Longitude is the first axis. Columns are separated by commas, semicolons, tabs or bars. What can't be told is
    refused: choose with --box or --x and --y. An .npy file holds boxes (n, 2*d): minima, then maxima. An .npz file
    holds them as `boxes`, with `ids` beside them if there are any. Without ids, records are numbered from 0.

    JSON keys: path, tree, loaded, records, dims, columns (null for arrays), points, id_column, bytes, read_seconds,
    load_seconds.
    """
    if (x or y or z) and not (x and y):
        raise click.UsageError("--x goes with --y, and --z with both")
    chosen = tuple(name.strip() for name in box.split(",")) if box else ()
    wanted = Wanted(chosen, tuple(filter(None, (x, y, z))), id_column)
    with (
        _progress_bar(enabled=not json_output, unit="B") as reading,
        _progress_bar(enabled=not json_output) as progress,
    ):
        result = build_index(
            source,
            path,
            tree=tree,
            points=points,
            append=append,
            wanted=wanted,
            encoding=encoding,
            reading=reading,
            progress=progress,
        )
    if json_output:
        _print_json(result)
        return
    if result["columns"] is not None:
        ids = f"ids from {result['id_column']}" if result["id_column"] is not None else "numbered from 0"
        click.echo(f"{source}: {'points' if result['points'] else 'boxes'} of {', '.join(result['columns'])}; {ids}")
    click.echo(
        f"{path}: {result['loaded']:,} records loaded in {result['load_seconds']:.2f} s, {result['records']:,} in all, "
        f"{result['dims']} dimensions, {_size(result['bytes'])}"
    )


@contextmanager
def _progress_bar(enabled: bool, unit: str = " records") -> Iterator[Progress | None]:
    """Hands out progress(done, total), which moves a bar; None when it isn't wanted or stderr is no terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    bars: list[tqdm] = []  # one, from the first report on

    def progress(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(unit=unit, unit_scale=True, leave=False))
        [bar] = bars
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:  # so that the next one has its place
            bar.close()

    try:
        yield progress
    finally:
        for bar in bars:
            bar.close()


@main.command(context_settings={"ignore_unknown_options": True})
@index_path
@click.argument("coordinates", type=float, nargs=-1, required=True)
@click.option(
    "--predicate",
    type=click.Choice(tuple(QUERY_PREDICATES)),
    default="intersects",
    show_default=True,
    help="What the window does. contains, covers: the record lies inside it; within, covered_by: it inside the record.",
)
@click.option("--count", is_flag=True, help="Print how many records there are instead of their ids.")
@click.option("--nearest", type=click.IntRange(min=1), metavar="K", help="The K records nearest to a point instead.")
@tree_name
@as_json
@clear_errors
def query(
    path: Path,
    coordinates: tuple[float, ...],
    predicate: Predicate,
    count: bool,
    nearest: int | None,
    tree: str,
    json_output: bool,
) -> None:
    """Ask the index PATH for a window or for the nearest records.

    COORDINATES are those of a box, minima then maxima (in 2-D: MINX MINY MAXX MAXY; -inf and inf leave a side open),
    or of a point (X Y). Prints one id a line, with --nearest each id and its distance.

    JSON keys: count, seconds; ids unless --count; distances with --nearest.
    """
    if nearest is not None and (count or predicate != "intersects"):
        raise click.UsageError("--nearest goes with neither --count nor --predicate")
    with xtree.Runtime(path, mode="r") as runtime:
        target = runtime.tree(tree)
        started = perf_counter()
        result: dict[str, Any] = {}
        if nearest is not None:
            result["ids"], result["distances"] = target.nearest(coordinates, k=nearest, return_distance=True)
            result["count"] = len(result["ids"])
        elif count:
            result["count"] = target.count(coordinates, predicate=predicate)
        else:
            result["ids"] = target.query(coordinates, predicate=predicate)
            result["count"] = len(result["ids"])
        result["seconds"] = perf_counter() - started
    if json_output:
        _print_json(result)
    elif count:
        click.echo(result["count"])
    elif nearest is not None:
        click.echo("".join(f"{i}\t{distance:.12g}\n" for i, distance in zip(*_lists(result), strict=True)), nl=False)
    else:
        click.echo("".join(f"{i}\n" for i in result["ids"].tolist()), nl=False)


def _lists(result: dict[str, Any]) -> tuple[list[int], list[float]]:
    return result["ids"].tolist(), result["distances"].tolist()


@main.command()
@index_path
@as_json
@clear_errors
def info(path: Path, json_output: bool) -> None:
    """Say what the index PATH consists of. Opens it read-only.

    JSON keys: path, bytes, files (size by name), runtime (Runtime.stats()), trees (by name: dims, bounds and what
    tree.stats() says: records, height, nodes, supernodes, fill and overlap by level, bytes).
    """
    found = describe_index(path)
    if json_output:
        _print_json(found)
        return
    click.echo(f"{path}: {len(found['trees'])} tree(s), {len(found['files'])} files, {_size(found['bytes'])}")
    for name, tree in found["trees"].items():
        click.echo(f"  {name}: {tree['records']:,} records in {tree['dims']} dimensions, bounds {tree['bounds']}")
        click.echo(f"    height {tree['height']}, {tree['nodes']:,} pages, {tree['supernodes']:,} supernodes")
        for level in tree["levels"]:
            click.echo(
                f"    level {level['level']}: {level['nodes']:,} pages, {level['entries']:,} entries, "
                f"fill {level['fill']:.0%}, overlap {level['overlap']:.1%}"
            )


@main.command()
@index_path
@as_json
@clear_errors
def check(path: Path, json_output: bool) -> None:
    """Verify everything that `fsck` does of the index PATH, every file and every page of every tree.

    Changes nothing. Exit status 1 when something is wrong, of which the first is shown; `xtree fsck` lists all.

    JSON keys: path, ok, seconds, error (the first thing wrong, or null), damage (how many are), orphans (how many
    leftovers there are that hold no commit), trees (by name: records, error).
    """
    result = check_index(path)
    if json_output:
        _print_json(result)
    else:
        _say(check_lines(result))
    if not result["ok"]:
        sys.exit(FOUND)


@main.command("fsck")
@index_path
@click.option("--repair", "mend", is_flag=True, help="Put right what is safe to; says before what it will do.")
@click.option("--dry-run", is_flag=True, help="With --repair: only say what it would do.")
@click.option(
    "--salvage",
    "target",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Put the records of all pages that can be read into the new index OUT instead.",
)
@as_json
@clear_errors
def fsck_command(path: Path, mend: bool, dry_run: bool, target: Path | None, json_output: bool) -> None:
    """Verify every file of the index PATH, and all that they say about each other; go on behind what is wrong.

    Changes nothing unless --repair is given, and works on an index that can't be opened. Exit status 1 when there is
    damage, or with --salvage when something is lost; orphans (leftovers that hold no commit) and notes alone are fine.

    JSON keys: path, scope, ok, opens, error (why it doesn't open, or null), epoch, counts (damage, orphan, note),
    findings (severity, part, file, offset, node, tree, expected, found, message), figures, trees (by name: records,
    found, pages, ok, dims, height), actions (kind, file, what), repaired, seconds. With --repair findings are those
    that are left. With --salvage: path, target, source, epoch, certain, trees (by name: dims, expected, saved, lost),
    pages (read, unreadable, stale), lost (records, or null), lost_epochs, complete, skipped, notes, seconds.
    """
    if dry_run and not mend:
        raise click.UsageError("--dry-run goes with --repair")
    if mend and target is not None:
        raise click.UsageError("--repair and --salvage exclude each other")
    with _progress_bar(enabled=not json_output, unit="B" if target is None else " pages") as progress:
        if target is not None:
            _salvage(path, target, json_output, progress)
            return
        if mend:
            said = (lambda report: None) if json_output else (lambda report: _say(report_lines(report)))
            report = repair(path, dry_run, said, progress)
        else:
            report = fsck(path, progress)
    if json_output:
        _print_json(report.as_dict())
    elif not mend or report.repaired:
        _say(report_lines(report))
    if not report.ok:
        sys.exit(FOUND)


def _salvage(path: Path, target: Path, json_output: bool, progress: Progress | None) -> None:
    result = salvage_index(path, target, progress)
    if json_output:
        _print_json(result)
    else:
        _say(salvage_lines(result))
    if not result["complete"]:
        sys.exit(FOUND)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


@main.command()
@index_path
@click.argument("what", type=click.Choice(WHAT), default="all")
@click.argument("which", required=False)
@click.option("--deltas", is_flag=True, help="wal: what each frame says about each page.")
@click.option("--depth", type=click.IntRange(min=0), default=1, show_default=True, help="tree: levels of the outline.")
@click.option("--entries", type=click.IntRange(min=0), default=5, show_default=True, help="page: how many to show.")
@as_json
@clear_errors
def dump(
    path: Path, what: str, which: str | None, deltas: bool, depth: int, entries: int, json_output: bool
) -> None:
    """Show what the files of the index PATH say, as far as they can be read; never changes anything.

    \b
    WHAT is one of
      superblock       both copies
      manifest         what it lists
      checkpoint       every checkpoint: epoch, rows, catalog, data files
      wal              every log, a line for each frame; --deltas
      page NODEID      a page, wherever it stands: header, entries, row; --entries
      tree [NAME]      levels, pages, fill, and an outline of --depth levels
      all              (the default) superblock, manifest, checkpoints, logs, trees in brief

    Exit status 1 when something of it can't be read.

    JSON keys: path, problems (what can't be read), and those that were asked for: superblock (copies), manifest,
    checkpoints, logs (frames, deltas), pages, trees. docs/tools.md explains them.
    """
    result = dump_index(path, what, which, deltas=deltas, depth=depth, entries=entries)
    if json_output:
        _print_json(result)
    else:
        _say(dump_lines(result))
    if result["problems"]:
        sys.exit(FOUND)


@main.command()
@index_path
@click.argument("target", type=click.Path(path_type=Path))
@as_json
@clear_errors
def backup(path: Path, target: Path, json_output: bool) -> None:
    """Copy the index PATH into the new directory TARGET; every page is verified on the way.

    Opens PATH read-only, beside other readers. While a process has it open for writing it is locked: that process makes
    backups itself, with Runtime.backup(), and goes on writing meanwhile. TARGET must be missing or an empty directory.

    JSON keys: path, target, trees (names), bytes, seconds.
    """
    with _progress_bar(enabled=not json_output, unit="B") as progress:
        result = backup_index(path, target, progress=progress)
    if json_output:
        _print_json(result)
        return
    click.echo(f"{target}: {len(result['trees'])} tree(s), {_size(result['bytes'])}, {result['seconds']:.2f} s")


@main.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Directory for the indexes and the picture; made afresh.",
)
@click.option(
    "--boxes",
    type=click.IntRange(1000, 1_000_000_000),
    default=1_000_000,
    show_default=True,
    help="How many boxes to generate.",
)
@as_json
@clear_errors
def demo(out: Path, boxes: int, json_output: bool) -> None:
    """Show what xtree does, on real and generated data, with a process killed in the middle of its work.

    JSON keys: places, million, crash (what each part measured), picture (path), ok.
    """
    from xtree.tools.demo import run

    result = run(out, boxes, say=(lambda text="": None) if json_output else click.echo)
    if json_output:
        _print_json(result)
    if not result["ok"]:
        sys.exit(FOUND)




if __name__ == "__main__":
    main()
