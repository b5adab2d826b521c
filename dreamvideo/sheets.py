"""Contact sheets as PNG: rows and columns of pictures with names and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamvideo.files import whole

__all__ = ["Tile", "sheet"]

_INK, _MARK, _GAP, _LINE = "#222222", "#d55e00", 12, 20  # pixels: between tiles, and from line to line
_FONT, _TITLE = ImageFont.load_default(15), ImageFont.load_default(19)


@dataclass(frozen=True, eq=False)
class Tile:
    """A place on a sheet."""

    pictures: np.ndarray
    """uint8 (N, H, W, 3), side by side."""
    caption: Sequence[str] = ()
    """Lines beneath."""
    marked: bool = False
    """With a frame around it."""


def sheet(
    path: Path,
    tiles: Sequence[Sequence[Tile]],
    *,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    height: int = 96,
) -> Path:
    """Write tiles, row by row, under a title. Pictures are made `height` pixels high."""
    strips = [[_strip(tile.pictures, height) for tile in row] for row in tiles]
    left = round(max(_FONT.getlength(row) for row in rows)) + 2 * _GAP
    wide = max(
        *(strip.width for row in strips for strip in row),
        *(round(_FONT.getlength(line)) for row in tiles for tile in row for line in tile.caption),
        *(round(_FONT.getlength(column)) for column in columns),
        0,
    )
    deep = height + _LINE * max(len(tile.caption) for row in tiles for tile in row)
    across, down, top = wide + 2 * _GAP, deep + 2 * _GAP, 3 * _LINE + _GAP
    width = max(left + across * len(columns), round(_TITLE.getlength(title)) + 2 * _GAP)
    page = Image.new("RGB", (width, top + down * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    pen.text((_GAP, _GAP), title, fill=_INK, font=_TITLE)
    for number, column in enumerate(columns):
        pen.text((left + across * number, top - _LINE // 2), column, fill=_INK, font=_FONT, anchor="ls")
    for number, (name, row) in enumerate(zip(rows, tiles, strict=True)):
        y = top + down * number
        pen.text((_GAP, y + height / 2), name, fill=_INK, font=_FONT, anchor="lm")
        for place, tile in enumerate(row):
            x, strip = left + across * place, strips[number][place]
            page.paste(strip, (x, y))
            for line, text in enumerate(tile.caption):
                pen.text((x, y + height + _LINE * line + 4), text, fill=_INK, font=_FONT)
            if tile.marked:
                around = (x - _GAP // 2, y - _GAP // 2, x + wide + _GAP // 2, y + deep + _GAP // 2)
                pen.rectangle(around, outline=_MARK, width=3)
    with whole(path) as draft:
        page.save(draft)
    return path


def _strip(pictures: np.ndarray, height: int) -> Image.Image:
    """Side by side, two pixels apart."""
    width = round(pictures.shape[2] * height / pictures.shape[1])
    how = Image.Resampling.NEAREST if pictures.shape[1] < height else Image.Resampling.LANCZOS
    strip = Image.new("RGB", ((width + 2) * len(pictures) - 2, height), "white")
    for number, picture in enumerate(pictures):
        strip.paste(Image.fromarray(picture).resize((width, height), how), ((width + 2) * number, 0))
    return strip
