"""Plots as PNG, drawn with Pillow: the package has it anyway, and plots of a few named values need no more."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dreamvideo.files import whole

__all__ = ["Bar", "Point", "bars", "lines", "scatter"]

_FINE = 2
"""Everything is drawn so many times as large and made smaller: Pillow's own edges are jagged."""
_DOT, _FONT = 9, 18
_INK, _FAINT = "#222222", "#dddddd"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#666666")  # Okabe & Ito 2008


@dataclass(frozen=True)
class Point:
    """A mean on either axis, with the standard deviation over seeds; 0 draws no bar."""

    x: float
    y: float
    x_spread: float = 0.0
    y_spread: float = 0.0


@dataclass(frozen=True)
class Bar:
    """A value, and a remark beneath its name."""

    value: float
    remark: str = ""


def scatter(path: Path, points: Mapping[str, Point], *, x: str, y: str) -> Path:
    """Write named points, with bars, between axes of the given names."""
    canvas = _Canvas(1200, 640)
    panel = _Panel.around(canvas, (110, 40, 880, 550), points.values())
    panel.frame(x=x, y=y)
    for number, (name, point) in enumerate(points.items()):
        panel.point(point, _colour(number))
        canvas.entry((900, 56 + 28 * number), name, _colour(number))
    return canvas.save(path)


def lines(path: Path, panels: Mapping[str, Mapping[str, Sequence[Point]]], *, x: str) -> Path:
    """Write a panel for each name, side by side: named lines through points over a common axis `x`; a line of one
    name has one colour in all panels."""
    colours = _colours(panels)
    canvas = _Canvas(390 * len(panels) + 40 + (260 if len(colours) > 1 else 0), 440)
    for number, (title, curves) in enumerate(panels.items()):
        box = (390 * number + 90, 50, 390 * number + 390, 350)
        marks = sorted({point.x for curve in curves.values() for point in curve})
        panel = _Panel.around(canvas, box, [point for curve in curves.values() for point in curve])
        panel.frame(x=x, y=title, marks=marks if len(marks) <= 5 else None)
        for name, curve in curves.items():
            panel.line(curve, colours[name])
            for point in curve:
                panel.point(point, colours[name])
    for number, (name, colour) in enumerate(colours.items() if len(colours) > 1 else ()):
        canvas.entry((390 * len(panels) + 30, 66 + 28 * number), name, colour)
    return canvas.save(path)


def bars(path: Path, panels: Mapping[str, Mapping[str, Bar]], *, y: str) -> Path:
    """Write a panel of named bars from zero for each name, side by side, each with an axis `y` of its own; bars of one
    name have one colour in all panels."""
    colours = _colours(panels)
    widths = [150 * max(3, len(panel)) for panel in panels.values()]
    canvas, left = _Canvas(sum(widths) + 150 * len(panels), 520), 0
    for (title, values), width in zip(panels.items(), widths, strict=True):
        box = (left + 120, 90, left + 120 + width, 410)
        top = max((bar.value for bar in values.values()), default=0.0) * 1.15 or 1.0
        panel = _Panel(canvas, box, _Axis(0, len(values), box[0], box[2]), _Axis(0, top, box[3], box[1]))
        panel.frame(x="", y=y, marks=())
        canvas.text((left + 120, 24), title, "lm", large=True)
        for number, (name, bar) in enumerate(values.items()):
            across, high = panel.across(number + 0.5), panel.up(bar.value)
            canvas.box((across - 40, high, across + 40, box[3]), fill=colours[name])
            canvas.text((across, high - 14), f"{bar.value:.3g}", "mm")
            canvas.text((across, box[3] + 22), name, "mm")
            canvas.text((across, box[3] + 46), bar.remark, "mm")
        left += width + 150
    return canvas.save(path)


def _colours(panels: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    return {name: _colour(number) for number, name in enumerate(names)}


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


class _Canvas:
    """A white page; lengths are in pixels of the file."""

    def __init__(self, width: int, height: int) -> None:
        self._page = Image.new("RGB", (_FINE * width, _FINE * height), "white")
        self._pen = ImageDraw.Draw(self._page)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int = 1) -> None:
        self._pen.line([(_FINE * x, _FINE * y) for x, y in points], colour, _FINE * width, joint="curve")

    def box(
        self, box: tuple[float, float, float, float], *, fill: str | None = None, outline: str | None = None
    ) -> None:
        self._pen.rectangle([_FINE * place for place in box], fill=fill, outline=outline, width=_FINE)

    def dot(self, x: float, y: float, colour: str) -> None:
        self._pen.ellipse([_FINE * place for place in (x - _DOT, y - _DOT, x + _DOT, y + _DOT)], fill=colour)

    def text(self, at: tuple[float, float], text: str, anchor: str, *, large: bool = False) -> None:
        font = ImageFont.load_default(_FINE * (_FONT + 4 if large else _FONT))
        self._pen.text((_FINE * at[0], _FINE * at[1]), text, fill=_INK, font=font, anchor=anchor)

    def entry(self, at: tuple[float, float], name: str, colour: str) -> None:
        """A line of the legend. Names stand apart: points lie close together."""
        self.dot(at[0] + _DOT, at[1], colour)
        self.text((at[0] + 3 * _DOT + 4, at[1]), name, "lm")

    def save(self, path: Path) -> Path:
        with whole(path) as draft:
            self._page.reduce(_FINE).save(draft)
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
        """About four round numbers."""
        least = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(least))
        step = next(step * size for step in (1, 2, 2.5, 5, 10) if step * size >= least)
        return [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class _Panel:
    """A plot on a canvas, between pixels (left, top, right, bottom)."""

    canvas: _Canvas
    box: tuple[float, float, float, float]
    across: _Axis
    up: _Axis

    @classmethod
    def around(cls, canvas: _Canvas, box: tuple[float, float, float, float], points: Collection[Point]) -> "_Panel":
        """With all points and their bars inside."""
        left, top, right, bottom = box
        xs = [point.x + sign * point.x_spread for point in points for sign in (-1, 1)]
        ys = [point.y + sign * point.y_spread for point in points for sign in (-1, 1)]
        return cls(canvas, box, _Axis.around(xs, left, right), _Axis.around(ys, bottom, top))

    def frame(self, *, x: str, y: str, marks: Sequence[float] | None = None) -> None:
        """Axes with their names; `marks` are the ticks across, five where there are None."""
        left, top, right, bottom = self.box
        for value in self.across.ticks() if marks is None else marks:
            self.canvas.line([(self.across(value), top), (self.across(value), bottom)], _FAINT)
            self.canvas.text((self.across(value), bottom + 8), f"{value:.3g}", "ma")
        for value in self.up.ticks():
            self.canvas.line([(left, self.up(value)), (right, self.up(value))], _FAINT)
            self.canvas.text((left - 8, self.up(value)), f"{value:.3g}", "rm")
        self.canvas.box(self.box, outline=_INK)
        self.canvas.text(((left + right) / 2, bottom + 60), x, "mm")
        self.canvas.text((left, top - 22), y, "lm")

    def line(self, points: Sequence[Point], colour: str) -> None:
        self.canvas.line([(self.across(point.x), self.up(point.y)) for point in points], colour, 2)

    def point(self, point: Point, colour: str) -> None:
        """A dot, and its bars where it has a spread."""
        x, y = self.across(point.x), self.up(point.y)
        if point.x_spread:
            self.canvas.line(
                [(self.across(point.x - point.x_spread), y), (self.across(point.x + point.x_spread), y)], colour, 2
            )
        if point.y_spread:
            self.canvas.line(
                [(x, self.up(point.y - point.y_spread)), (x, self.up(point.y + point.y_spread))], colour, 2
            )
        self.canvas.dot(x, y, colour)
