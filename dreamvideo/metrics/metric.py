"""What a metric is given, what it answers, and how the two are kept together."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dreamvideo.features import Images

__all__ = ["LIKENESS", "Metric", "Motion", "Sample", "Score", "likeness", "measured"]

LIKENESS = {"frames": "all", "references": "all, whole"}
"""What `likeness` looks at, for protocols."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Motion:
    """A clip whose motion the video should have, at the video's frame rate."""

    frames: np.ndarray
    """uint8 (F, H, W, 3), of any size."""
    paths: np.ndarray | None = None
    """Where points of what moves truly are, (N, F, 2): x and y as shares of the frame's sides."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One generated video and what it was made from."""

    frames: np.ndarray
    """uint8 (F, H, W, 3)."""
    fps: float | None = None
    """None: the frames are all that there is, such as a folder of them."""
    prompt: str | None = None
    """In plain words: the class word where the prompt had a learned one."""
    references: Sequence[np.ndarray] = ()
    """Pictures of the subject, uint8 (H, W, 3) of any sizes."""
    motions: Sequence[Motion] = ()
    """Clips of the motion, whose frames should not be seen again."""
    siblings: Sequence[np.ndarray] = ()
    """Videos of the same prompt and other seeds, uint8 (F, H, W, 3)."""


@dataclass(frozen=True)
class Score:
    """One number, and all that must be said with it."""

    name: str
    value: float
    higher_is_better: bool
    protocol: Mapping[str, Any]


class Metric(ABC):
    """Questions: `name`? `higher_is_better`? `needs`: what must be given? `protocol`: how is it measured? `measure`:
    what is it for this sample? None where it does not apply."""

    name: ClassVar[str]
    needs: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @property
    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """What the number depends on beside the sample, as plain data: it goes wherever the number goes."""

    @abstractmethod
    def measure(self, sample: Sample) -> float | None:
        """One number for one video."""


def measured(metrics: Iterable[Metric], sample: Sample) -> list[Score]:
    """The scores of a sample; a metric that does not apply to it has none."""
    values = ((metric, metric.measure(sample)) for metric in metrics)
    return [
        Score(metric.name, value, metric.higher_is_better, metric.protocol)
        for metric, value in values
        if value is not None
    ]


def likeness(images: Images, sample: Sample) -> float | None:
    """The mean cosine of every frame and every picture of the subject; None where there is no picture."""
    if len(sample.references) == 0:
        return None
    return float((images(sample.frames) @ images(sample.references).T).mean())
