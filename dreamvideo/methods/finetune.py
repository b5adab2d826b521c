"""Fine-tuning of ModelScopeT2V, the baseline of DreamVideo's supplementary (section 1.3).

Spatial parameters are tuned on a subject, temporal ones on a motion; composed, they stand side by side, because no
parameter is in both. What is kept is theta - theta_0, so that it can be scaled and taken off like any adapter.
"""

from dataclasses import dataclass
from typing import ClassVar

from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.methods.tuning import MotionTuning, SubjectTuning

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSubject(SubjectTuning):
    """All spatial parameters, tuned on pictures.

    min over theta_space of || m eps - m eps_theta(x_t, t, c("a sks dog")) ||^2.
    """

    name: ClassVar[str] = "finetune-subject"
    learns: ClassVar = "image"

    weights: tuple[str, ...] = ("*",)
    """Which of the spatial parameters, as patterns for their names."""
    steps: int = 200
    lr: float = 1e-5

    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        return AdapterSet(Delta(), base.weights("space", self.weights), seed=seed)


@dataclass(frozen=True, kw_only=True)
class FinetuneMotion(MotionTuning):
    """All temporal parameters, tuned on clips and their captions.

    min over theta_time of || eps - eps_theta(x_t, t, c(caption)) ||^2.
    """

    name: ClassVar[str] = "finetune-motion"
    learns: ClassVar = "clip"

    weights: tuple[str, ...] = ("*",)
    """Which of the temporal parameters, as patterns for their names."""
    steps: int = 1000
    lr: float = 1e-5

    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        return AdapterSet(Delta(), base.weights("time", self.weights), seed=seed)


METHODS = (FinetuneSubject, FinetuneMotion)
