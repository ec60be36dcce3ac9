"""A small SVG writer for maps: boxes, points and labels in degrees of longitude and latitude."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["MapSvg"]


class MapSvg:
    """A picture of a part of the world; what is drawn later lies on top.

    `view` is (minx, miny, maxx, maxy) in degrees, `width` in pixels; the height follows.
    """

    def __init__(self, view: tuple[float, float, float, float], width: int = 1200, background: str = "#f6f8fa") -> None:
        self.view = view
        self.scale = width / (view[2] - view[0])
        self.width = width
        self.height = round((view[3] - view[1]) * self.scale)
        self.parts = [f'<rect width="{self.width}" height="{self.height}" fill="{background}"/>']

    def boxes(self, boxes: Iterable[Iterable[float]], stroke: str, opacity: float = 0.0, width: float = 1.0) -> None:
        """Draws each (minx, miny, maxx, maxy), filled with the colour of its outline at an opacity of 0 to 1."""
        shapes = []
        for minx, miny, maxx, maxy in boxes:
            (left, bottom), (right, top) = self._place(minx, miny), self._place(maxx, maxy)
            across, down = right - left, bottom - top
            shapes.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{across:.1f}" height="{down:.1f}"/>')
        style = f'fill="{stroke}" fill-opacity="{opacity}" stroke="{stroke}" stroke-width="{width}"'
        self.parts.append(f"<g {style}>{''.join(shapes)}</g>")

    def points(self, points: Iterable[Iterable[float]], fill: str, radius: float = 2.0) -> None:
        """Draws a dot at each (x, y)."""
        dots = []
        for x, y in points:
            left, top = self._place(x, y)
            dots.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{radius}"/>')
        self.parts.append(f'<g fill="{fill}">{"".join(dots)}</g>')

    def label(self, x: float, y: float, text: str, fill: str = "#24292f", size: int = 11) -> None:
        """Writes a text whose left end is beside the point."""
        left, top = self._place(x, y)
        self.parts.append(
            f'<text x="{left + 4:.1f}" y="{top - 3:.1f}" fill="{fill}" font-size="{size}" '
            f'font-family="sans-serif">{escape(text)}</text>'
        )

    def svg(self) -> str:
        """The picture as a document of its own, which also goes into HTML as it is."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}">\n' + "\n".join(self.parts) + "\n</svg>\n"
        )

    def save(self, path: Path) -> None:
        """Writes the document to a file."""
        path.write_text(self.svg(), encoding="utf-8")

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return (x - self.view[0]) * self.scale, (self.view[3] - y) * self.scale
