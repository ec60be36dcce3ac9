from typing import Any

BOUNDS_S: tuple[float, ...]

class Latency:
    def observe(self, seconds: float) -> None: ...
    def as_dict(self) -> dict[str, Any]: ...
