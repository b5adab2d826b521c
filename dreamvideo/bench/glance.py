"""A comparison at a glance: a contact sheet, an entry a row, what it was asked a column, frame beside frame."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dreamvideo.bench.results import Result, Store, Table, Unit
from dreamvideo.media import crop_wide, read_clip
from dreamvideo.sheets import Tile, sheet

__all__ = ["draw"]

_SIZE, _FRAMES, _COLUMNS = (64, 64), 6, 3  # pixels; of each video so many; units
_NOTHING = np.full((1, *_SIZE, 3), 255, dtype=np.uint8)


def draw(path: Path, table: Table, store: Store, looks: Mapping[str, Sequence[np.ndarray]], *, title: str) -> Path:
    """Write the videos of the first seed, for units of different concepts first.

    Args:
        looks: concept -> some pictures (H, W, 3) of what it was learned from.
    """
    columns = dict(_columns(table))
    learned = [Tile(_learned(unit, looks)) for unit in columns]
    tiles = [
        [Tile(_frames(store.video(own[entry].row.key)) if entry in own else _NOTHING) for own in columns.values()]
        for entry in table.summaries
    ]
    return sheet(
        path,
        [learned, *tiles],
        title=title,
        rows=["learned from", *table.summaries],
        columns=[unit.prompt.format_map({"subject": unit.subject, "motion": unit.motion}) for unit in columns],
        height=_SIZE[0],
    )


def _columns(table: Table) -> Iterator[tuple[Unit, Mapping[str, Result]]]:
    """Units with their results by entry; those of concepts that are not shown yet go first."""
    seed, units = table.results[0].row.seed, dict[Unit, dict[str, Result]]()
    for result in table.results:
        if result.row.seed == seed:
            units.setdefault(result.row.unit, {})[result.row.entry] = result
    seen, later = set[str | None](), []
    for unit in units:
        concepts = {unit.subject, unit.motion} - {None}
        if concepts & seen:
            later.append(unit)
        seen |= concepts
    order = [*(unit for unit in units if unit not in later), *later]
    yield from ((unit, units[unit]) for unit in order[:_COLUMNS])


def _learned(unit: Unit, looks: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Of two concepts, half of the room each."""
    found = [looks[name] for name in (unit.subject, unit.motion) if name in looks]
    shown = [crop_wide(look, _SIZE) for own in found for look in own[: _FRAMES // len(found)]]
    return np.stack(shown) if shown else _NOTHING


def _frames(video: Path) -> np.ndarray:
    frames = read_clip(video, size=_SIZE).frames
    return frames[np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)]
