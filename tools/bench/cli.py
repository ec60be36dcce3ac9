"""The commands `bench`: what is measured, of how much, and where the figures go."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from xtree.tools.cli_errors import clear_errors

__all__ = ["bench"]

MULTIPLES = {"": 1, "k": 1000, "M": 1_000_000}


class Counts(click.ParamType):
    """Numbers of records with commas between them, in thousands (k) or millions (M) if they say so: 100k,1M."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found = [re.fullmatch(r"([1-9][0-9_]*)([kM]?)", part.strip()) for part in value.split(",")]
        if not all(found):
            self.fail(f"expected numbers like 100k,1M, got {value!r}", param, ctx)
        return tuple(int(match[1]) * MULTIPLES[match[2]] for match in found if match)


_json = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON to this file."
)
_quick = click.option("--quick", is_flag=True, help="Measure less, each benchmark in under a minute.")
_directory = click.option(
    "--dir",
    "--directory",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory on the disk to be measured; by default that of temporary files.",
)


def measuring(command: Callable[..., None]) -> Callable[..., None]:
    """The options of what measures a disk too."""
    return _json(_quick(_directory(command)))


@click.group(invoke_without_command=True)
@measuring
@click.pass_context
@clear_errors
def bench(ctx: click.Context, json_file: Path | None, quick: bool, directory: Path | None) -> None:
    """Measure xtree on this machine, beside other engines where they are installed.

    Without a command: substrate, then index. JSON keys: substrate, index, with what each of them writes.
    """
    if ctx.invoked_subcommand is None:
        _write({"substrate": _substrate(quick, directory), "index": _index(quick, directory)}, json_file)
    elif json_file is not None or quick or directory is not None:
        raise click.UsageError(f"options stand after the command: bench {ctx.invoked_subcommand} --quick")


@bench.command()
@measuring
@clear_errors
def substrate(json_file: Path | None, quick: bool, directory: Path | None) -> None:
    """What the store beneath the trees costs: lookups, slots, commits, checkpoints, recovery, opening, space.

    JSON keys: benchmark, xtree, machine, scale, seconds, figures (section, name, unit, samples, median, least, most,
    ratios to other figures of the same run, targets of ratios, note), skipped (why, by name).
    """
    _write(_substrate(quick, directory), json_file)


@bench.command()
@measuring
@click.option(
    "--data",
    "sources",
    multiple=True,
    metavar="KIND|FILE",
    default=("uniform",),
    show_default=True,
    help="uniform, clustered (boxes), points (clustered), cities, or a .csv, .npy or .npz file of boxes; repeatable.",
)
@click.option("--records", type=Counts(), default=(), help="How many, such as 100k,1M,10M: a run for each.")
@clear_errors
def index(
    json_file: Path | None, quick: bool, directory: Path | None, sources: tuple[str, ...], records: tuple[int, ...]
) -> None:
    """What trees cost: building, windows, nearest records, joins, inserts, deletes, memory, space.

    JSON keys: benchmark, xtree, machine, scale, seconds, runs (for each data and number of records: data, records,
    figures and skipped as in `bench substrate`, missed: the targets that were not met). docs/performance.md explains
    them.
    """
    _write(_index(quick, directory, sources, records), json_file)


@bench.command()
@_json
@_quick
@clear_errors
def layout(json_file: Path | None, quick: bool) -> None:
    """What the size of a page costs and saves in memory: building, windows, nearest records, inserts, by dimension.

    JSON keys: benchmark, xtree, machine, scale, seconds, figures and skipped as in `bench substrate`.
    """
    from xtree.tools.bench.layout import FULL, QUICK, bench_layout

    _write(bench_layout(QUICK if quick else FULL, click.echo), json_file)


def _substrate(quick: bool, directory: Path | None) -> dict[str, Any]:
    from xtree.tools.bench.substrate import FULL, QUICK, bench_substrate

    return bench_substrate(QUICK if quick else FULL, directory, click.echo)


def _index(
    quick: bool, directory: Path | None, sources: Sequence[str] = ("uniform",), records: Sequence[int] = ()
) -> dict[str, Any]:
    from xtree.tools.bench.index import FULL, QUICK, bench_index

    return bench_index(QUICK if quick else FULL, directory, click.echo, sources, records)


def _write(result: dict[str, Any], path: Path | None) -> None:
    from xtree.tools.bench.substrate import write_json

    if path is not None:
        write_json(result, path)
