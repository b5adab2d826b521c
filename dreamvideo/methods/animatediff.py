"""AnimateDiff (Guo et al. 2023) as DreamVideo compares with it (supplementary, section 1.3).

The image model is tuned on a subject by DreamBooth, alone; the pretrained motion modules are tuned on a motion, because
new ones learned from a few clips were unstable. Composed, they stand side by side, because no parameter is in both.
Where the paper is silent, defaults are those of the code that it names for DreamBooth, and of AnimateDiff's own.
"""

from dataclasses import dataclass
from typing import ClassVar

from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.methods.tuning import MotionTuning, SubjectTuning

__all__ = ["METHODS"]

MOTION_MODULES = ("*.motion_modules.*",)


@dataclass(frozen=True, kw_only=True)
class AnimateDiffSubject(SubjectTuning):
    """DreamBooth on the image model inside a video base; the layers that mix frames take no part.

    min over theta_space of DreamBooth's objective, see `SubjectTuning`. The noise is the base's.
    """

    name: ClassVar[str] = "animatediff-subject"
    learns: ClassVar = "image"

    steps: int = 800
    lr: float = 1e-6
    template: str = "photo of a {subject}"
    class_count: int = 8
    class_prompt: str = "photo of a {class}"
    flip: bool = True
    mask: bool = False
    noise_offset: float = 0.0
    bypass_time: bool = True

    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        return AdapterSet(Delta(), base.weights("space"), seed=seed)


@dataclass(frozen=True, kw_only=True)
class AnimateDiffMotion(MotionTuning):
    """The motion modules of an AnimateDiff base, tuned on clips and their captions.

    min over theta_motion of || eps - eps_theta(x_t, t, c(caption)) ||^2.
    """

    name: ClassVar[str] = "animatediff-motion"
    learns: ClassVar = "clip"

    steps: int = 50
    lr: float = 1e-5
    drop_text: float = 0.1
    noise_offset: float = 0.0

    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        return AdapterSet(Delta(), base.weights("time", MOTION_MODULES), seed=seed)


METHODS = (AnimateDiffSubject, AnimateDiffMotion)
