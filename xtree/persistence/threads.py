"""Threads: how the library starts its own, where the system may have none to give."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any


def start_thread(target: Callable[..., Any], name: str, *arguments: Any, daemon: bool = False) -> threading.Thread:
    """A thread that runs target(*arguments). Raises OSError (EAGAIN) when the system has none to give."""
    thread = threading.Thread(target=target, name=name, args=arguments, daemon=daemon)
    try:
        thread.start()
    except RuntimeError as error:  # a limit of the process or its user, or the interpreter is about to end
        raise OSError(errno.EAGAIN, f"{os.strerror(errno.EAGAIN)}: no thread can be started for {name}") from error
    return thread
