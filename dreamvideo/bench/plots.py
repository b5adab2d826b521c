"""Plots as PNG, drawn with Pillow: the package has it anyway, and a plot of a few named points needs no more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dreamvideo.files import whole

__all__ = ["Point", "scatter"]

_SIZE, _MARGIN, _DOT = (1200, 640), (110, 40, 320, 90), 9  # pixels; left, top, right, bottom
_INK, _FAINT = "#222222", "#dddddd"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#666666")  # Okabe & Ito 2008


@dataclass(frozen=True)
class Point:
    """A mean on either axis, with the standard deviation over seeds; 0 draws no bar."""

    x: float
    y: float
    x_spread: float = 0.0
    y_spread: float = 0.0


def scatter(path: Path, points: Mapping[str, Point], *, x: str, y: str) -> Path:
    """Write named points, with bars, between axes of the given names."""
    page = Image.new("RGB", _SIZE, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    left, top, right, bottom = _MARGIN[0], _MARGIN[1], _SIZE[0] - _MARGIN[2], _SIZE[1] - _MARGIN[3]
    across = _Axis.around([p.x + sign * p.x_spread for p in points.values() for sign in (-1, 1)], left, right)
    up = _Axis.around([p.y + sign * p.y_spread for p in points.values() for sign in (-1, 1)], bottom, top)
    for value in across.ticks():
        pen.line((across(value), top, across(value), bottom), fill=_FAINT)
        pen.text((across(value), bottom + 8), f"{value:.3g}", fill=_INK, font=font, anchor="ma")
    for value in up.ticks():
        pen.line((left, up(value), right, up(value)), fill=_FAINT)
        pen.text((left - 8, up(value)), f"{value:.3g}", fill=_INK, font=font, anchor="rm")
    pen.rectangle((left, top, right, bottom), outline=_INK)
    pen.text(((left + right) / 2, _SIZE[1] - 30), x, fill=_INK, font=font, anchor="mm")
    pen.text((left, top - 22), y, fill=_INK, font=font, anchor="lm")
    for number, (name, point) in enumerate(points.items()):
        colour, at = _COLOURS[number % len(_COLOURS)], (across(point.x), up(point.y))
        pen.line((across(point.x - point.x_spread), at[1], across(point.x + point.x_spread), at[1]), colour, 2)
        pen.line((at[0], up(point.y - point.y_spread), at[0], up(point.y + point.y_spread)), colour, 2)
        pen.ellipse((at[0] - _DOT, at[1] - _DOT, at[0] + _DOT, at[1] + _DOT), fill=colour)
        # Names stand apart: points lie close together.
        line = top + 16 + 28 * number
        pen.ellipse((right + 20, line - _DOT, right + 20 + 2 * _DOT, line + _DOT), fill=colour)
        pen.text((right + 24 + 3 * _DOT, line), name, fill=_INK, font=font, anchor="lm")
    with whole(path) as draft:
        page.save(draft)
    return path


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high`, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        """With a tenth of room on either side."""
        room = (max(values) - min(values)) / 10 or 0.05
        return cls(min(values) - room, max(values) + room, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Five, evenly."""
        return [self.low + (self.high - self.low) * number / 4 for number in range(5)]
