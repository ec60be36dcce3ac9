"""How commands fail: a line on stderr, and the exit status that belongs to it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

import xtree

__all__ = ["FOUND", "INTERRUPTED", "REFUSED", "Interruptible", "clear_errors"]

# Exit status: something is wrong with an index; a request can't be met; ended by Ctrl-C, as shells say it.
FOUND, REFUSED, INTERRUPTED = 1, 2, 130


class Interruptible(click.Group):
    """Commands that Ctrl-C ends without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo("\nAborted!", err=True)
            ctx.exit(INTERRUPTED)


def clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what a command may raise into one line on stderr and the exit status that belongs to it."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except xtree.CorruptionError as error:
            _fail(error, FOUND)
        except BrokenPipeError:
            raise
        except (xtree.XTreeError, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            _fail(error, REFUSED)

    return wrapped


def _fail(error: BaseException, status: int) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    click.echo(f"xtree: {text}", err=True)
    sys.exit(status)
