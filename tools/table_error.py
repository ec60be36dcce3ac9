"""TableError: what a file of boxes or points must be, and isn't."""

__all__ = ["TableError"]


class TableError(ValueError):
    """Raised when a file isn't a table of boxes or points; says file, expected and found."""
