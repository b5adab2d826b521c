"""The whole story in one command: learn a subject and a motion, compose them, show it on a page, with scores."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from dreamvideo import api, metrics, scoring
from dreamvideo.adapters.file import ConceptFile
from dreamvideo.bases.base import VideoBase
from dreamvideo.bundled import EXAMPLES
from dreamvideo.files import write_text
from dreamvideo.metrics.metric import Sample, measured

__all__ = ["demo"]

_SUBJECT, _CLASS = "fox", "animal"
_MOTION = "hopping"
_PLACES = ("in the snow", "on the beach", "in the city")
_SEED = 3

_RANDOM_WEIGHTS = (
    "This base has random weights: everything below was really learned and sampled, but a random denoiser makes noise. "
    "It shows that the whole path runs on this machine, not what the method can do."
)


@dataclass(frozen=True)
class _Column:
    """One way to make the videos."""

    title: str
    prompt: str
    """With room for a place."""
    concepts: Sequence[ConceptFile]


@dataclass(frozen=True)
class _Cell:
    file: str
    caption: str
    scores: dict[str, float]


def demo(base: VideoBase, folder: Path, *, steps: int | None, on_stage: Callable[[str], None] = print) -> Path:
    """Run the story on `base` into `folder` and return its page.

    Args:
        steps: updates of each stage; None: as many as the recipes say.
    """
    begun = time.monotonic()
    pictures, clips = (folder / "inputs" / name for name in (_SUBJECT, _MOTION))
    for kind, place in (("subjects", pictures), ("motions", clips)):
        shutil.copytree(EXAMPLES / kind / place.name, place, dirs_exist_ok=True)
    settings = [{"train": {"steps": steps}}] if steps else []
    on_stage(f"learning the subject <{_SUBJECT}> from its pictures")
    subject = api.learn(base, pictures, method="dreamvideo-subject", out=folder / "subject", settings=settings)
    on_stage(f"learning the motion {_MOTION!r} from its clips")
    motion = api.learn(base, clips, method="dreamvideo-motion", out=folder / "motion", settings=settings)
    on_stage("sampling: the base, each alone, both together")
    columns = [
        _Column("the base", f"an {_CLASS} {_MOTION} {{}}", ()),
        _Column("the subject", f"a <{_SUBJECT}> {{}}", (subject,)),
        _Column("the motion", f"an {_CLASS} {_MOTION} {{}}", (motion,)),
        _Column("both", f"a <{_SUBJECT}> {_MOTION} {{}}", (subject, motion)),
    ]
    looks = sorted(pictures.glob("*.png"))
    scores = _scores(base)
    rows = [[_made(base, column, place, folder, looks[0], scores) for column in columns] for place in _PLACES]
    text = Environment(loader=PackageLoader("dreamvideo"), autoescape=select_autoescape()).get_template("demo.html")
    page = text.render(
        base=base.name,
        note=_RANDOM_WEIGHTS if base.name == base.tiny_name else None,
        seconds=f"{time.monotonic() - begun:.0f}",
        pictures=[str(path.relative_to(folder)) for path in looks],
        clips=[str(path.relative_to(folder)) for path in sorted(clips.glob("*.mp4"))],
        subject=_SUBJECT,
        motion=_MOTION,
        titles=[column.title for column in columns],
        rows=rows,
        means={
            name: [np.mean([row[number].scores[name] for row in rows]) for number in range(len(columns))]
            for name in rows[0][0].scores
        },
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _made(
    base: VideoBase,
    column: _Column,
    place: str,
    folder: Path,
    look: Path,
    scores: Callable[[np.ndarray, str], dict[str, float]],
) -> _Cell:
    prompt = column.prompt.format(place)
    # A picture of what should move: guidance for the motion's adapter.
    guide = look if any(concept.meta.role == "motion" for concept in column.concepts) else None
    video = api.generate(base, prompt, concepts=column.concepts, appearance=guide, seed=_SEED)
    file = video.save(folder / f"{column.title} {place}.mp4".replace(" ", "-"))
    return _Cell(str(file.relative_to(folder)), prompt, scores(video.frames, f"an {_CLASS} {_MOTION} {place}"))


def _scores(base: VideoBase) -> Callable[[np.ndarray, str], dict[str, float]]:
    """Frames and a prompt in plain words -> every metric that applies: the same ones for every video."""
    chosen, fps = metrics.for_base(base), base.defaults.fps
    references = scoring.read_pictures(EXAMPLES / "subjects" / _SUBJECT)
    motions = scoring.read_motions(EXAMPLES / "motions" / _MOTION, fps=fps)

    def scores(frames: np.ndarray, prompt: str) -> dict[str, float]:
        sample = Sample(frames=frames, fps=fps, prompt=prompt, references=references, motions=motions)
        return {one.name: one.value for one in measured(chosen, sample)}

    return scores
