"""Cosines of CLIP's vectors, as the official script takes them (metric/cal_metric_DreamVideo.py): all of unit vectors,
all frames, the mean over frames and references.

The script counts only references whose name ends in .jpg, and 0 where there are none; here every picture counts, and
without one there is no CLIP-I.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dreamvideo.features import Images, Texts
from dreamvideo.metrics.metric import LIKENESS, Metric, Sample, likeness

__all__ = ["METRICS", "ClipI", "ClipT", "TemporalConsistency"]


@dataclass(frozen=True)
class ClipT(Metric):
    """Text alignment: cosine of every frame and the prompt, by CLIP."""

    name: ClassVar[str] = "CLIP-T"
    needs: ClassVar[str] = "a CLIP, the prompt"
    images: Images
    texts: Texts

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {**self.images.protocol, "frames": "all", "prompt": "plain words, the class word for a learned one"}

    def measure(self, sample: Sample) -> float | None:
        if sample.prompt is None:
            return None
        return float((self.images(sample.frames) @ self.texts([sample.prompt])[0]).mean())


@dataclass(frozen=True)
class ClipI(Metric):
    """Subject fidelity: cosine of every frame and every picture of the subject, by CLIP."""

    name: ClassVar[str] = "CLIP-I"
    needs: ClassVar[str] = "a CLIP, pictures of the subject"
    images: Images

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {**self.images.protocol, **LIKENESS}

    def measure(self, sample: Sample) -> float | None:
        return likeness(self.images, sample)


@dataclass(frozen=True)
class TemporalConsistency(Metric):
    """Steadiness: cosine of every two consecutive frames, by CLIP."""

    name: ClassVar[str] = "Temporal consistency"
    needs: ClassVar[str] = "a CLIP"
    images: Images

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {**self.images.protocol, "frames": "all, consecutive pairs"}

    def measure(self, sample: Sample) -> float | None:
        if len(sample.frames) < 2:
            return None
        vectors = self.images(sample.frames)
        return float((vectors[:-1] * vectors[1:]).sum(dim=-1).mean())


METRICS = (ClipT, ClipI, TemporalConsistency)
