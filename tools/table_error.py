"""TableError: the error for a file that isn't a table of boxes or points."""

__all__ = ["TableError"]


class TableError(ValueError):
    """Raised when a file isn't a table of boxes or points; says file, expected and found."""
