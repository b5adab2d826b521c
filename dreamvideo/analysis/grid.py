"""Which checkpoint of a subject and of a motion, and at which weights? Users of the official code pick by hand; here
every combination is sampled and measured, and a rule picks.

The rule: criteria are text alignment (CLIP-T), subject fidelity (DINO-I, else CLIP-I) and motion fidelity, those that
every cell has. Each goes from 0, the worst mean of the grid, to 1, the best; a cell's score is their harmonic mean, so
that what is worst in one cannot win by another. Of equal scores the higher plain mean wins, then the earlier cell, that
of fewer steps.
"""

import csv
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dreamvideo import api
from dreamvideo.adapters.file import ConceptFile, load, read_meta
from dreamvideo.adapters.weight import Weight
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import read_concept
from dreamvideo.config import plain
from dreamvideo.errors import BadInput
from dreamvideo.files import whole, write_json
from dreamvideo.media import Kind
from dreamvideo.metrics.metric import Metric, Sample, Score, measured
from dreamvideo.plots import Point, lines
from dreamvideo.sample import SampleConfig
from dreamvideo.scoring import read_motions, read_pictures
from dreamvideo.sheets import Tile, sheet
from dreamvideo.wording import plain_words

__all__ = ["RULE", "Asked", "Cell", "Version", "criteria", "make", "ranked", "versions", "write"]

CRITERIA = (("CLIP-T",), ("DINO-I", "CLIP-I"), ("Motion fidelity",))
"""Of each the first that every cell has; higher is better in all."""
RULE = (
    "each criterion from 0, the worst mean of the grid, to 1, the best; the largest harmonic mean of the criteria; of "
    "equals the largest mean, then the first"
)
_SHOWN = 4
"""Frames of a video on the sheet."""


@dataclass(frozen=True)
class Version:
    """A concept as it was after some updates, at a weight."""

    concept: ConceptFile
    step: int | None
    """Of the last stage of learning; None for a file by itself."""
    weight: Weight

    @property
    def label(self) -> str:
        step = "" if self.step is None else f" step {self.step},"
        return f"{self.concept.meta.name},{step} weight {self.weight}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every cell is asked, and what it is held against."""

    prompt: str
    seeds: Sequence[int] = (0,)
    config: SampleConfig
    references: Path | None = None
    """Folder of pictures of the subject; the first guides motions that were learned with appearance guidance."""
    reference_clip: Path | None = None
    """A clip of the motion, or a folder of clips; methods that say so start from the first one's inverted noise."""


@dataclass(frozen=True)
class Cell:
    """A combination, its videos and what was measured of them, seed by seed."""

    subject: Version | None
    motion: Version | None
    videos: tuple[Path, ...]
    frames: np.ndarray
    """Of the first video, uint8 (F, H, W, 3)."""
    scores: tuple[Mapping[str, Score], ...]

    @property
    def means(self) -> dict[str, float]:
        """Metric -> mean over the seeds; what does not apply to all of them is absent."""
        shared = [name for name in self.scores[0] if all(name in own for own in self.scores)]
        return {name: statistics.fmean(own[name].value for own in self.scores) for name in shared}


def versions(source: Path, *, steps: Sequence[int] = (), weights: Sequence[str] = ()) -> list[Version]:
    """A concept's checkpoints at each of the weights, in the order of steps.

    Args:
        source: a run's folder, or a concept's file, which is one checkpoint.
        steps: which checkpoints of the last stage; all that were kept when empty.
        weights: as `Weight.parse` reads them; the concept's own when empty.

    Raises:
        BadInput: there are no checkpoints, or none of one of the steps.
    """
    files = dict(_checkpoints(source)) if source.is_dir() else {None: source}
    if missing := [step for step in steps if step not in files]:
        kept = ", ".join(str(step) for step in files if step is not None) or "none"
        raise BadInput(
            f"{source}: no checkpoint of step {missing[0]}; there are {kept}; "
            "learn with --set train.save_every=N to keep others"
        )
    concepts = {step: load(files[step]) for step in steps or files}
    return [
        Version(concept, step, weight)
        for step, concept in concepts.items()
        for weight in (map(Weight.parse, weights) if weights else (concept.meta.sampling.weight,))
    ]


def _checkpoints(run: Path) -> Iterator[tuple[int, Path]]:
    """Step -> file, of the last stage: before it a concept is not whole."""
    stages = {file: read_meta(file)[0].steps.keys() for file in sorted((run / "checkpoints").glob("*.safetensors"))}
    if not stages:
        raise BadInput(f"{run}: no checkpoints in it; name a run's folder, or a concept's file")
    count = max(len(own) for own in stages.values())
    yield from ((int(file.stem.rpartition("-")[2]), file) for file, own in stages.items() if len(own) == count)


def make(
    base: VideoBase,
    asked: Asked,
    subjects: Sequence[Version],
    motions: Sequence[Version],
    *,
    measures: Sequence[Metric],
    folder: Path,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> list[Cell]:
    """Sample and measure every combination, the subject's versions first; videos go to `folder`. `on_video` is told how
    many are done, and of how many.

    Raises:
        BadInput: neither subject nor motion, or see `api.generate`.
    """
    if not subjects and not motions:
        raise BadInput("a grid needs a --subject, a --motion, or both")
    pairs, seeds = list(product(subjects or (None,), motions or (None,))), asked.seeds
    cells = []
    for number, (subject, motion) in enumerate(pairs):
        taken = [version for version in (subject, motion) if version is not None]
        videos = []
        for place, seed in enumerate(seeds):
            videos.append(_video(base, asked, taken, seed))
            on_video(number * len(seeds) + place + 1, len(pairs) * len(seeds))
        files = [folder / f"{number + 1:03d}-seed-{seed}.mp4" for seed in seeds]
        for video, file in zip(videos, files, strict=True):
            video.save(file)
        scores = tuple(_scores(asked, taken, video, measures) for video in videos)
        cells.append(Cell(subject, motion, tuple(files), videos[0].frames, scores))
    return cells


def _video(base: VideoBase, asked: Asked, taken: Sequence[Version], seed: int) -> api.Video:
    concepts = [version.concept for version in taken]
    return api.generate(
        base,
        asked.prompt,
        concepts=concepts,
        weights=[version.weight for version in taken],
        **api.exemplified(
            concepts, pictures=_files(asked.references, "image"), clips=_files(asked.reference_clip, "clip")
        ),
        seed=seed,
        config=asked.config,
    )


def _files(examples: Path | None, kind: Kind) -> list[Path]:
    return [] if examples is None else [example.path for example in read_concept(examples, kind=kind).examples]


def _scores(asked: Asked, taken: Sequence[Version], video: api.Video, measures: Sequence[Metric]) -> dict[str, Score]:
    motions = [] if asked.reference_clip is None else read_motions(asked.reference_clip, fps=video.fps)
    sample = Sample(
        frames=video.frames,
        fps=video.fps,
        prompt=plain_words(asked.prompt, [version.concept for version in taken]),
        references=() if asked.references is None else read_pictures(asked.references),
        motions=motions,
    )
    return {score.name: score for score in measured(measures, sample)}


# -- the rule ---------------------------------------------------------------------------------------------------------


def criteria(cells: Sequence[Cell]) -> list[str]:
    """The metrics that decide.

    Raises:
        BadInput: no cell has any.
    """
    found = [next((name for name in names if all(name in cell.means for cell in cells)), None) for names in CRITERIA]
    if not any(found):
        raise BadInput("nothing here tells cells apart: give --references or --reference-clip, or a --clip")
    return [name for name in found if name is not None]


def ranked(cells: Sequence[Cell]) -> tuple[list[float], int]:
    """Every cell's score in [0, 1], and the number of the best."""
    columns = [_normalised([cell.means[name] for cell in cells]) for name in criteria(cells)]
    rows = list(zip(*columns, strict=True))
    scores = [statistics.harmonic_mean(row) for row in rows]
    return scores, max(range(len(cells)), key=lambda at: (scores[at], statistics.fmean(rows[at]), -at))


def _normalised(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [1.0 if low == high else (value - low) / (high - low) for value in values]


# -- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, asked: Asked, cells: Sequence[Cell]) -> tuple[list[Path], int]:
    """Write grid.csv and grid.json, sheet.png, and for each concept of several steps a plot of the criteria against
    them.

    Returns:
        The files, and the number of the best cell.
    """
    scores, best = ranked(cells)
    told = [_told(cell, score) for cell, score in zip(cells, scores, strict=True)]
    columns = list(told[0])[:-2] + list(dict.fromkeys(name for cell in cells for name in cell.means))
    with whole(folder / "grid.csv") as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "best"], restval="", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for number, (line, cell) in enumerate(zip(told, cells, strict=True)):
            writer.writerow({**line, **cell.means, "best": int(number == best)})
    first = cells[0].scores[0]
    write_json(
        folder / "grid.json",
        {
            "prompt": asked.prompt,
            "seeds": list(asked.seeds),
            "rule": RULE,
            "criteria": criteria(cells),
            "best": best,
            "cells": told,
            "metrics": {name: plain(score.protocol) for name, score in first.items()},
        },
    )
    picture = _sheet(folder / "sheet.png", asked, cells, scores, best)
    return [folder / "grid.csv", folder / "grid.json", picture, *_plots(folder, cells)], best


def _told(cell: Cell, score: float) -> dict[str, Any]:
    sides = {
        f"{role}{suffix}": None if version is None else value
        for role, version in (("subject", cell.subject), ("motion", cell.motion))
        for suffix, value in (
            ("", version and version.concept.meta.name),
            ("_step", version and version.step),
            ("_weight", version and str(version.weight)),
        )
    }
    values = [{name: one.value for name, one in own.items()} for own in cell.scores]
    return {**sides, "score": score, "videos": [file.name for file in cell.videos], "scores": values}


def _sheet(path: Path, asked: Asked, cells: Sequence[Cell], scores: Sequence[float], best: int) -> Path:
    """The subject's versions down and the motion's across; of one concept its steps and its weights."""
    names, shown = criteria(cells), []
    for number, cell in enumerate(cells):
        places = np.linspace(0, len(cell.frames) - 1, min(_SHOWN, len(cell.frames))).round().astype(int)
        values = [f"{name} {cell.means[name]:.3f}" for name in names]
        shown.append(Tile(cell.frames[places], [f"score {scores[number]:.2f}", ", ".join(values)], number == best))
    if cells[0].subject is not None and cells[0].motion is not None:
        rows, columns = (
            [label for label in dict.fromkeys(labels)] for labels in zip(*map(_labels, cells), strict=True)
        )
    else:
        own = [cell.subject or cell.motion for cell in cells]
        rows = list(dict.fromkeys(f"step {v.step}" if v.step is not None else v.concept.meta.name for v in own))
        columns = list(dict.fromkeys(f"weight {version.weight}" for version in own))
    tiles = [shown[start : start + len(columns)] for start in range(0, len(shown), len(columns))]
    return sheet(path, tiles, title=f"{asked.prompt}, seed {asked.seeds[0]}", rows=rows, columns=columns)


def _labels(cell: Cell) -> tuple[str, str]:
    return cell.subject.label, cell.motion.label


def _plots(folder: Path, cells: Sequence[Cell]) -> Iterator[Path]:
    """The criteria against the steps of each concept that has several, over all that the other one was."""
    for role in ("subject", "motion"):
        own = [(version, cell) for cell in cells if (version := getattr(cell, role)) is not None]
        if len({version.step for version, _ in own}) > 1:
            panels = {name: _curves(own, name) for name in criteria(cells)}
            name = own[0][0].concept.meta.name
            yield lines(folder / f"{role}-steps.png", panels, x=f"Step of {name}")


def _curves(own: Sequence[tuple[Version, Cell]], metric: str) -> dict[str, list[Point]]:
    """Weight -> a point for every step: the mean over cells, and the deviation of the seeds' means."""
    curves: dict[str, list[Point]] = {}
    for weight, step in dict.fromkeys((str(version.weight), version.step) for version, _ in own):
        these = [cell for version, cell in own if (str(version.weight), version.step) == (weight, step)]
        seeds = [
            statistics.fmean(s[metric].value for s in seed) for seed in zip(*(c.scores for c in these), strict=True)
        ]
        spread = statistics.stdev(seeds) if len(seeds) > 1 else 0.0
        curves.setdefault(f"weight {weight}", []).append(Point(step, statistics.fmean(seeds), 0.0, spread))
    return curves
