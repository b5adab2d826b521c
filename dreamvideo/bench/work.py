"""What a worker does: learn a concept, or make and measure one video. Either is a value, and its result a file."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch

from dreamvideo import api, media, metrics
from dreamvideo.adapters.file import ConceptFile, load
from dreamvideo.bases.base import VideoBase
from dreamvideo.bench.results import Store
from dreamvideo.config import build, plain
from dreamvideo.errors import DreamVideoError
from dreamvideo.files import write_json
from dreamvideo.metrics.metric import Metric, Sample, measured
from dreamvideo.sample import SampleConfig
from dreamvideo.scoring import read_motions

__all__ = ["BasePlace", "Cell", "Learning", "Task", "attempt", "digest", "forget_bases", "protocols"]


@dataclass(frozen=True, kw_only=True)
class BasePlace:
    """A base and its metrics, by what they are loaded from."""

    reference: str
    image_encoder: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    encoders: tuple[tuple[str, str], ...] = ()

    def load(self) -> VideoBase:
        """The base; the last one asked for stays in memory."""
        return _base(self)

    def metrics(self) -> list[Metric]:
        """What can be measured on it; likewise. Learning does without, and its peak memory too."""
        return _metrics(self)


@lru_cache(maxsize=1)
def _base(place: BasePlace) -> VideoBase:
    return api.load_base(place.reference, dtype=place.dtype, device=place.device, image_encoder=place.image_encoder)


@lru_cache(maxsize=1)
def _metrics(place: BasePlace) -> list[Metric]:
    base = place.load()
    return metrics.for_base(base, device=str(base.device), **dict(place.encoders))


def forget_bases() -> None:
    """Free what is in memory."""
    _base.cache_clear()
    _metrics.cache_clear()


class Task(ABC):
    """Questions: `key`: by what is its result known? `needs`: which tasks must be done before? `alone`: must a process
    do this one and nothing before it, so that its peak memory is its own? `done`: is the result there? `do` it."""

    key: str
    alone: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> Sequence["Task"]: ...

    @abstractmethod
    def done(self, store: Store) -> bool: ...

    @abstractmethod
    def do(self, store: Store) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Learning(Task):
    """A concept to learn. A run that was cut short goes on."""

    key: str
    base: BasePlace
    source: Path
    method: str
    recipe: str | None
    settings: tuple[Mapping[str, Any], ...]
    name: str
    word: str | None
    caption: str | None
    alone: ClassVar[bool] = True

    @property
    def needs(self) -> Sequence[Task]:
        return ()

    def file(self, store: Store) -> Path:
        return store.learned(self.key) / f"{self.name}.safetensors"

    def done(self, store: Store) -> bool:
        return self.file(store).exists()

    def do(self, store: Store) -> None:
        api.learn(
            self.base.load(),
            self.source,
            method=self.method,
            name=self.name,
            word=self.word,
            caption=self.caption,
            out=store.learned(self.key),
            recipe=self.recipe,
            settings=self.settings,
        )


@dataclass(frozen=True, kw_only=True)
class Cell(Task):
    """A video to make and to measure."""

    key: str
    base: BasePlace
    learned: tuple[Learning, ...]
    prompt: str
    plain: str
    """The prompt with the class word for what was learned."""
    seed: int
    sampling: Mapping[str, Any]
    pictures: tuple[Path, ...] = ()
    """Of the subject; the first guides motions that were learned with appearance guidance."""
    clips: tuple[Path, ...] = ()
    """Of the motion; methods that say so start from the first one's inverted noise."""

    @property
    def needs(self) -> Sequence[Task]:
        return self.learned

    def done(self, store: Store) -> bool:
        return store.cell(self.key).exists()

    def do(self, store: Store) -> None:
        base, measures = self.base.load(), self.base.metrics()
        concepts = [load(learning.file(store)) for learning in self.learned]
        video = api.generate(
            base,
            self.prompt,
            concepts=concepts,
            **api.exemplified(concepts, pictures=self.pictures, clips=self.clips),
            seed=self.seed,
            config=build(SampleConfig, self.sampling, where="sampling"),
        )
        motions = [motion for clip in self.clips for motion in read_motions(clip, fps=video.fps)]
        sample = Sample(
            frames=video.frames,
            fps=video.fps,
            prompt=self.plain,
            references=[media.read_image(picture).pixels for picture in self.pictures],
            motions=motions,
        )
        media.write_video(store.video(self.key), video.frames, fps=video.fps)
        # Last: a cell is done when this file is there.
        write_json(
            store.cell(self.key),
            {
                "base": {"name": base.name, "family": base.family, "dtype": base.precision},
                "prompt": self.prompt,
                "plain": self.plain,
                "seed": self.seed,
                "sampling": video.made["config"],
                "concepts": [
                    _told(learning.key, concept) for learning, concept in zip(self.learned, concepts, strict=True)
                ],
                "frames_sha256": hashlib.sha256(video.frames.tobytes()).hexdigest(),
                "scores": {score.name: score.value for score in measured(measures, sample)},
                "metrics": protocols(measures),
                "versions": {name: version(name) for name in ("dreamvideo", "torch", "diffusers", "transformers")},
            },
        )


def attempt(task: Task, store: Store) -> str | None:
    """Do a task in a worker; an explained failure is its message, nothing else is caught.

    One thread computes, so that a result does not depend on how many workers there are.
    """
    torch.set_num_threads(1)
    try:
        task.do(store)
    except DreamVideoError as error:
        return str(error)
    return None


def digest(facts: Any) -> str:
    """Hash of plain data."""
    return hashlib.sha256(json.dumps(plain(facts), sort_keys=True).encode()).hexdigest()[:16]


def protocols(measures: Sequence[Metric]) -> dict[str, Any]:
    """Metric -> how it measures and which way is better."""
    return {
        metric.name: {"higher_is_better": metric.higher_is_better, "protocol": plain(metric.protocol)}
        for metric in measures
    }


def _told(key: str, concept: ConceptFile) -> dict[str, Any]:
    meta = concept.meta
    learned = [parameter for adapters in concept.sets.values() for parameter in adapters.parameters()]
    return {
        "key": key,
        **{name: value for name, value in asdict(meta).items() if name in ("name", "role", "method", "steps")},
        "settings": plain(meta.settings),
        "parameters": sum(parameter.numel() for parameter in learned),
    }
