"""Cosines of DINO's vectors: how much of the subject is there, and how much of what should not be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dreamvideo.features import Images
from dreamvideo.metrics.metric import LIKENESS, Metric, Sample, likeness

__all__ = ["METRICS", "DinoI", "Leak"]


@dataclass(frozen=True)
class DinoI(Metric):
    """Subject fidelity: cosine of every frame and every picture of the subject, by DINO.

    As CLIP-I, by the official script; see `metrics.clip`.
    """

    name: ClassVar[str] = "DINO-I"
    needs: ClassVar[str] = "a DINO, pictures of the subject"
    images: Images

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {**self.images.protocol, **LIKENESS}

    def measure(self, sample: Sample) -> float | None:
        return likeness(self.images, sample)


@dataclass(frozen=True)
class Leak(Metric):
    """Copying: the largest cosine of a frame and a frame that was learned from, by DINO.

    A motion's clips show somebody in some place, and neither should come back with the motion. No paper that is
    compared here measures it.
    """

    name: ClassVar[str] = "Leak"
    needs: ClassVar[str] = "a DINO, the clips of the motion"
    higher_is_better: ClassVar[bool] = False
    images: Images

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {**self.images.protocol, "frames": "all, the largest cosine", "training frames": "all"}

    def measure(self, sample: Sample) -> float | None:
        if not sample.motions:
            return None
        learned = [frame for motion in sample.motions for frame in motion.frames]
        return float((self.images(sample.frames) @ self.images(learned).T).max())


METRICS = (DinoI, Leak)
