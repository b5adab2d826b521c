"""A comparison at a glance: a contact sheet, an entry a row, what it was asked a column, frame beside frame."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dreamvideo.bench.results import Result, Store, Table
from dreamvideo.files import whole
from dreamvideo.media import crop_wide, read_clip

__all__ = ["draw"]

_TILE, _FRAMES = 64, 6  # pixels; of each video so many
_GAP, _NAMES, _HEAD = 10, 190, 40  # pixels: between columns, of the entries' names, of the prompts
_INK = "#222222"
_COLUMNS = 3


def draw(path: Path, table: Table, store: Store, looks: Mapping[str, Sequence[NDArray[np.uint8]]]) -> Path:
    """Write the videos of the first seed, for units of different concepts first.

    Args:
        looks: concept -> some pictures (H, W, 3) of what it was learned from.
    """
    shown = _columns(table)
    entries = list(table.summaries)
    strip = _FRAMES * _TILE
    width, height = _NAMES + len(shown) * (strip + _GAP), _HEAD + (1 + len(entries)) * (_TILE + _GAP)
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for row, name in enumerate(["learned from", *entries]):
        middle = _HEAD + row * (_TILE + _GAP) + _TILE // 2
        pen.text((8, middle), shorten(name, 24, placeholder="..."), fill=_INK, font=font, anchor="lm")
    for column, (unit, results) in enumerate(shown.items()):
        left = _NAMES + column * (strip + _GAP)
        *concepts, prompt = unit
        said = prompt.format_map({"subject": concepts[0], "motion": concepts[1]})
        pen.text((left, _HEAD // 2), shorten(said, 48, placeholder="..."), fill=_INK, font=font, anchor="lm")
        learned = [list(looks[name]) for name in concepts if name in looks]
        # Of two concepts, half of the row each.
        pictures = [picture for each in learned for picture in each[: _FRAMES // len(learned)]]
        _paste(page, pictures, left, _HEAD)
        for result in results:
            frames = read_clip(store.video(result.row.key), size=(_TILE, _TILE)).frames
            chosen = [frames[(len(frames) - 1) * number // (_FRAMES - 1)] for number in range(_FRAMES)]
            _paste(page, chosen, left, _HEAD + (1 + entries.index(result.row.entry)) * (_TILE + _GAP))
    with whole(path) as draft:
        page.save(draft)
    return path


def _columns(table: Table) -> dict[tuple[str | None, str | None, str], list[Result]]:
    """Unit -> its results of the first seed; a unit of concepts that are not shown yet goes first."""
    seed = table.results[0].row.seed
    units: dict[tuple[str | None, str | None, str], list[Result]] = {}
    for result in table.results:
        if result.row.seed == seed:
            units.setdefault(result.row.unit, []).append(result)
    concepts: set[str | None] = set()
    fresh = []
    for unit in units:
        if not concepts & set(unit[:2]) - {None}:
            fresh.append(unit)
            concepts |= set(unit[:2])
    order = [*fresh, *(unit for unit in units if unit not in fresh)]
    return {unit: units[unit] for unit in order[:_COLUMNS]}


def _paste(page: Image.Image, pictures: Sequence[NDArray[np.uint8]], left: int, top: int) -> None:
    for number, picture in enumerate(pictures):
        page.paste(Image.fromarray(crop_wide(picture, (_TILE, _TILE))), (left + number * _TILE, top))
