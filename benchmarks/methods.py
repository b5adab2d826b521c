"""What every method learns on the bundled world, and what it costs: a table and a contact sheet.

    python benchmarks/methods.py [METHOD ...] [--base NAME] [--workers N]

Subject methods learn held-out subjects from their pictures and are asked for them in other places; motion methods learn
held-out motions from their clips and are asked for them with training subjects. DINO-I tells how like the pictures the
subject is. The judge, trained on renderings alone, tracks the subject: `path` is the distance of its track to the
nearest true path of the motion. Each base, method and concept is a cell, `docs/methods/BASE/METHOD/CONCEPT.json`,
learned in a process of its own; cells that are there are kept. Then `docs/methods.md` and its pictures are written from
all cells.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from dreamvideo import api, bases, media, methods, metrics
from dreamvideo.adapters.file import ConceptFile
from dreamvideo.bundled import DEFAULT_BASE, EXAMPLES
from dreamvideo.concept import read_concept
from dreamvideo.data import to_pixels
from dreamvideo.errors import Unsupported
from dreamvideo.files import whole, write_json, write_text
from dreamvideo.metrics.metric import Sample

ROOT = Path(__file__).parents[1]
PRETRAIN = ROOT / "pretrain"
sys.path.insert(0, str(PRETRAIN))  # the judge is no part of the package

from judges import Judge, Motions  # noqa: E402

PLAIN = "base"
"""The cell of nothing learned."""
PLACES = ("in the snow", "on the beach", "in the city")
ACTORS = ("frog", "pumpkin", "bus")
"""Training subjects, who perform the motions, one in each place."""
CONCEPTS = {"subject": ("fox", "pinata"), "motion": ("hopping", "pacing")}
SCORES = {"subject": ("DINO-I", "CLIP-T", "place"), "motion": ("path", "subject", "place")}
TILE = 48  # pixels

PAGE = """# What every method learns

Written by `benchmarks/methods.py`, whose first lines say how each number is made. Every method learns with its recipe
for the base that the row names, and by `paper` where it has none; `base` is the base with nothing learned. Scores are
means over {clips} clips; prompts, seeds and samplers are the same for all. Seconds and memory are of learning alone, in
a process of its own ({machine}). Higher is better, but for `path`, a distance.
"""


@dataclass(frozen=True)
class Cell:
    """One method on one concept."""

    method: str
    concept: str
    role: str
    base: str
    seeds: int

    def file(self, out: Path) -> Path:
        return out / self.base / self.method / f"{self.concept}.json"


def run(cell: Cell, out: Path, threads: int) -> str:
    """Learn and measure a cell, and write it; say what it scored, or why it does not apply."""
    torch.set_num_threads(threads)
    base = bases.load(cell.base)
    folder = EXAMPLES / f"{cell.role}s" / cell.concept
    told: dict[str, Any] = {"method": cell.method, "concept": cell.concept, "role": cell.role, "base": cell.base}
    with TemporaryDirectory() as place:
        learned = []
        if cell.method != PLAIN:
            try:
                learned = [api.learn(base, folder, method=cell.method, out=place)]
            except Unsupported as error:
                return f"{cell.method}: {error}"
            told |= _cost(learned[0], json.loads((Path(place) / "run.json").read_text(encoding="utf-8")))
        clips, scores = (_subject if cell.role == "subject" else _motion)(base, cell, learned)
    told["clips"] = len(clips)
    told["scores"] = {name: round(value, 4) for name, value in scores.items()}
    cell.file(out).parent.mkdir(parents=True, exist_ok=True)
    with whole(cell.file(out).with_suffix(".png")) as draft:
        _strip(clips).save(draft)
    write_json(cell.file(out), told)
    return f"{cell.method} {cell.concept}: {told['scores']}"


def _cost(concept: ConceptFile, record: Mapping[str, Any]) -> dict[str, Any]:
    learned = [parameter for adapters in concept.sets.values() for parameter in adapters.parameters()]
    return {
        "parameters": sum(parameter.numel() for parameter in learned),
        "steps": dict(concept.meta.steps),
        "seconds": record["seconds"],
        "peak_memory_bytes": record["peak_memory_bytes"],
    }


def _subject(base: Any, cell: Cell, learned: Sequence[ConceptFile]) -> tuple[list[np.ndarray], dict[str, float]]:
    """The subject in every place: like its pictures? As the prompt says? In that place?"""
    folder = EXAMPLES / "subjects" / cell.concept
    references = [media.read_image(path).pixels for path in sorted(folder.glob("*.png"))]
    word = read_concept(folder, kind="image").word
    name = f"a <{cell.concept}>" if learned else f"a {word}"
    clips = [
        api.generate(base, f"{name} {place}", concepts=learned, seed=seed).frames
        for seed in range(cell.seeds)
        for place in PLACES
    ]
    chosen = [metric for metric in metrics.for_base(DEFAULT_BASE) if metric.name in ("DINO-I", "CLIP-T")]
    prompts = [f"a {word} {place}" for place in PLACES] * cell.seeds
    scores = {
        metric.name: statistics.mean(
            metric.measure(Sample(frames=frames, prompt=prompt, references=references))
            for frames, prompt in zip(clips, prompts, strict=True)
        )
        for metric in chosen
    }
    seen = Judge.load(PRETRAIN / "judge").verdict(_pixels(clips), Motions(base.defaults.frames))
    return clips, {**scores, "place": _right(seen.place, [place.split()[-1] for place in PLACES])}


def _motion(base: Any, cell: Cell, learned: Sequence[ConceptFile]) -> tuple[list[np.ndarray], dict[str, float]]:
    """Training subjects perform the motion: along its path? Are they themselves? In that place?"""
    clip = min((EXAMPLES / "motions" / cell.concept).glob("*.mp4"))
    inverted = clip if any(concept.meta.sampling.inversion for concept in learned) else None
    clips = [
        api.generate(base, f"a {actor} {cell.concept} {place}", concepts=learned, seed=seed, inversion=inverted).frames
        for seed in range(cell.seeds)
        for actor, place in zip(ACTORS, PLACES, strict=True)
    ]
    motions = Motions(base.defaults.frames, [cell.concept.replace("-", " ")])
    verdict = Judge.load(PRETRAIN / "judge").verdict(_pixels(clips), motions)
    path = motions.distance(verdict.seen.centre, verdict.seen.scale, verdict.seen.angle).mean().item()
    right = {"subject": _right(verdict.subject, ACTORS)}
    return clips, {"path": path, **right, "place": _right(verdict.place, [place.split()[-1] for place in PLACES])}


def _pixels(clips: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.cat([to_pixels(frames) for frames in clips])


def _right(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of right names; `wanted` comes again with every seed."""
    return statistics.mean(name == wanted[number % len(wanted)] for number, name in enumerate(found))


def _strip(clips: Sequence[np.ndarray]) -> Image.Image:
    """The first clip of every place, frame beside frame, one under another."""
    rows = [np.concatenate(list(frames), axis=1) for frames in clips[: len(PLACES)]]
    picture = Image.fromarray(np.concatenate(rows))
    scale = TILE / clips[0].shape[1]
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)


# -- the page ---------------------------------------------------------------------------------------------------------


def report(out: Path) -> Path:
    """Write the tables and the contact sheets from all cells."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*/*/*.json"))]
    rows.sort(key=lambda row: (row["concept"], row["base"], row["method"] != PLAIN, row["method"]))
    machine = f"{platform.machine()}, torch {torch.__version__}"
    parts = [PAGE.format(machine=machine, clips=rows[0]["clips"])]
    for role, scores in SCORES.items():
        these = [row for row in rows if row["role"] == role]
        if these:
            _sheet(out, role, these)
            parts += [
                f"## {role.capitalize()} methods",
                "",
                *_table(these, scores),
                "",
                f"![]({out.name}/{role}.png)",
                "",
            ]
    page = out.with_suffix(".md")
    write_text(page, "\n".join(parts))
    return page


def _table(rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> Iterator[str]:
    columns = ["method", "base", "concept", "steps", "parameters", "seconds", "memory, MiB", *scores]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        cost = ["", "", "", ""]
        if "steps" in row:
            steps = " + ".join(str(count) for count in row["steps"].values())
            memory = row["peak_memory_bytes"] / 2**20
            cost = [steps, f"{row['parameters']:,}", f"{row['seconds']:.0f}", f"{memory:.0f}"]
        values = [f"{row['scores'][name]:.3f}" for name in scores]
        yield "| " + " | ".join([row["method"], row["base"], row["concept"], *cost, *values]) + " |"


def _sheet(out: Path, role: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every method's strip under its name, one column for each concept."""
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    names = list(dict.fromkeys((row["base"], row["method"]) for row in rows))
    strips = {
        (row["base"], row["method"], row["concept"]): out / row["base"] / row["method"] / f"{row['concept']}.png"
        for row in rows
    }
    width, height = Image.open(next(iter(strips.values()))).size
    page = Image.new("RGB", (len(concepts) * (width + 8), len(names) * (height + 16)), "white")
    pen = ImageDraw.Draw(page)
    for (base, method, concept), file in strips.items():
        left, top = concepts.index(concept) * (width + 8), names.index((base, method)) * (height + 16)
        pen.text((left + 2, top + 2), f"{method} on {base}, {concept}", fill="black")
        page.paste(Image.open(file), (left, top + 14))
    with whole(out / f"{role}.png") as draft:
        page.save(draft)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "methods")
    parser.add_argument("--base", default=DEFAULT_BASE)
    parser.add_argument("--concepts", nargs="*", help="default: two of each sort")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    given = parser.parse_args()
    roles = {name: method().role for name, method in methods.available().items()}
    wanted = [
        Cell(method, concept, role, given.base, given.seeds)
        for role in CONCEPTS
        for method in (PLAIN, *roles)
        if roles.get(method, role) == role and (not given.methods or method in (PLAIN, *given.methods))
        for concept in CONCEPTS[role]
        if not given.concepts or concept in given.concepts
    ]
    missing = [cell for cell in wanted if not cell.file(given.out).exists()]
    # Each in a fresh process, so that peak memory is its own.
    pool = ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with pool:
        for done in as_completed([pool.submit(run, cell, given.out, given.threads) for cell in missing]):
            print(done.result(), flush=True)
    print(report(given.out))


if __name__ == "__main__":
    main()
