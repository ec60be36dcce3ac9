"""A small SVG writer for maps: boxes, points and labels in degrees of longitude and latitude."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from xtree.tools.map_labels import label_boxes

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
        self._write(left + 4, top - 3, text, fill, size)

    def lines(self, lines: Iterable[np.ndarray], stroke: str, width: float = 1.0) -> None:
        """Draws lines, each (n, 2) of x and y; those that don't reach the view are left out."""
        view = np.array(self.view)
        shapes = []
        for line in lines:
            if (line.min(axis=0) <= view[2:]).all() and (line.max(axis=0) >= view[:2]).all():
                places = " ".join("{:.1f},{:.1f}".format(*self._place(x, y)) for x, y in line)
                shapes.append(f'<polyline points="{places}"/>')
        style = f'fill="none" stroke="{stroke}" stroke-width="{width}" stroke-linejoin="round"'
        self.parts.append(f"<g {style}>{''.join(shapes)}</g>")

    def labels(self, points: np.ndarray, texts: Sequence[str], avoid: np.ndarray, size: int = 11) -> None:
        """Writes a text beside each point (n, 2), none on another or on a point of `avoid` (m, 2)."""
        dots = [(x - 3, y - 3, x + 3, y + 3) for x, y in (self._place(*point) for point in avoid)]
        places = np.array([self._place(*point) for point in points]).reshape(-1, 2)
        area = (2.0, 2.0, self.width - 2.0, self.height - 2.0)
        for (x, y), text, box in zip(places, texts, label_boxes(places, texts, size, area, dots), strict=True):
            left, top, right, bottom = box
            near = min(max(x, left), right), min(max(y, top), bottom)
            if np.hypot(near[0] - x, near[1] - y) > 10:  # too far away to see which point it belongs to
                self.parts.append(
                    f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{near[0]:.1f}" y2="{near[1]:.1f}" '
                    'stroke="#24292f" stroke-width="0.5"/>'
                )
            self._write(left, bottom - 0.2 * size, text, "#24292f", size, right - left)

    def svg(self) -> str:
        """The picture as a document of its own, which also goes into HTML as it is."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}">\n' + "\n".join(self.parts) + "\n</svg>\n"
        )

    def save(self, path: Path) -> None:
        """Writes the document to a file."""
        path.write_text(self.svg(), encoding="utf-8")

    def _write(self, left: float, bottom: float, text: str, fill: str, size: int, width: float = 0.0) -> None:
        """Writes a text, squeezed into a width if there is one."""
        squeezed = f' textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"' if width else ""
        self.parts.append(
            f'<text x="{left:.1f}" y="{bottom:.1f}" fill="{fill}" font-size="{size}" '
            f'font-family="sans-serif"{squeezed}>{escape(text)}</text>'
        )

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return (x - self.view[0]) * self.scale, (self.view[3] - y) * self.scale
