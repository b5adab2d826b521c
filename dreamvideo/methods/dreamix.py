"""Dreamix (Molad et al. 2023) as DreamVideo reproduces it: DreamBooth on the spatial parameters of a video base.

The original is closed, runs on Imagen Video and mixes whole clips with unordered frames; the comparison keeps the
fine-tune on a subject's pictures alone, without class images (supplementary, section 1.1).
"""

from dataclasses import dataclass
from typing import ClassVar

from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.methods.tuning import SubjectTuning

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class Dreamix(SubjectTuning):
    """DreamBooth on a video base: spatial parameters bind a rare identifier to the subject.

    min over theta_space of DreamBooth's objective, see `SubjectTuning`.
    """

    name: ClassVar[str] = "dreamix"
    learns: ClassVar = "image"

    weights: tuple[str, ...] = ("*",)
    """Which of the spatial parameters, as patterns for their names."""
    steps: int = 200
    lr: float = 1e-5

    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        return AdapterSet(Delta(), base.weights("space", self.weights), seed=seed)


METHODS = (Dreamix,)
