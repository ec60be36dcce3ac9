"""Libraries whose objects users pass, and which may not be installed: their types, once they have been imported.

Nobody can pass an object of a library that hasn't been imported, so nothing is imported here.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_a", "loaded"]


def loaded(library: str) -> Any:
    """The module, perhaps in the middle of its import; None when nobody has imported it."""
    return sys.modules.get(library)


def is_a(value: object, library: str, *names: str) -> bool:
    """Whether a value is an instance of one of a library's types."""
    module = loaded(library)
    types = tuple(getattr(module, name, None) for name in names)
    return any(isinstance(known, type) and isinstance(value, known) for known in types)
