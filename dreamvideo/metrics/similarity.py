"""Cosines of encoder vectors, as the official script takes them (metric/cal_metric_DreamVideo.py): all of unit vectors,
all frames, the mean over frames and references."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dreamvideo.features import Images, Texts
from dreamvideo.metrics.metric import Metric, Sample

__all__ = ["ClipT", "SubjectSimilarity", "TemporalConsistency"]


@dataclass(frozen=True)
class ClipT(Metric):
    """CLIP-T: every frame and the prompt."""

    name: ClassVar[str] = "CLIP-T"
    images: Images
    texts: Texts

    @property
    def protocol(self) -> Mapping[str, Any]:
        return _protocol(self.images)

    def measure(self, sample: Sample) -> float | None:
        if sample.prompt is None:
            return None
        return float((self.images(sample.frames) @ self.texts([sample.prompt])[0]).mean())


@dataclass(frozen=True)
class SubjectSimilarity(Metric):
    """CLIP-I or DINO-I, by the encoder that it is given: every frame and every reference picture."""

    name: str  # type: ignore[misc]
    images: Images

    @property
    def protocol(self) -> Mapping[str, Any]:
        return _protocol(self.images)

    def measure(self, sample: Sample) -> float | None:
        if len(sample.references) == 0:
            return None
        return float((self.images(sample.frames) @ self.images(sample.references).T).mean())


@dataclass(frozen=True)
class TemporalConsistency(Metric):
    """Temporal consistency: every two consecutive frames, by CLIP."""

    name: ClassVar[str] = "Temporal consistency"
    images: Images

    @property
    def protocol(self) -> Mapping[str, Any]:
        return _protocol(self.images)

    def measure(self, sample: Sample) -> float | None:
        if len(sample.frames) < 2:
            return None
        vectors = self.images(sample.frames)
        return float((vectors[:-1] * vectors[1:]).sum(dim=-1).mean())


def _protocol(images: Images) -> Mapping[str, Any]:
    return {"encoder": images.name, "preprocessing": asdict(images.preprocessing), "frames": "all"}
