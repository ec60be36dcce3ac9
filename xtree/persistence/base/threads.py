"""Threads: how the library starts its own, and the error when the system has none to give."""

from __future__ import annotations

import errno
import os
from _thread import start_new_thread
from collections.abc import Callable
from typing import Any

from xtree.persistence.base.lock_ranks import Worker


def start_worker(target: Callable[[], Any], name: str) -> Worker:
    """Starts a daemon thread that runs target(). Raises OSError (EAGAIN) when the system has none to give."""
    worker = Worker(target, name)
    try:
        worker.start()
    except RuntimeError as error:
        raise _none_to_be_had(name) from error
    return worker


def start_detached(name: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Calls function(*arguments) in a new thread that it doesn't wait for. Raises OSError as `start_worker` does."""
    try:
        start_new_thread(function, arguments)
    except RuntimeError as error:
        raise _none_to_be_had(name) from error


def _none_to_be_had(name: str) -> OSError:
    """The error when a limit of the process or its user is reached, or the interpreter is about to end."""
    return OSError(errno.EAGAIN, f"{os.strerror(errno.EAGAIN)}: no thread can be started for {name}")
