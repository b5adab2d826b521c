"""Fine-tuning of ModelScopeT2V, the baseline of DreamVideo's supplementary (section 1.3).

Spatial parameters are tuned on a subject, temporal ones on a motion; composed, they stand side by side, because no
parameter is in both. What is kept is theta - theta_0, so that it can be scaled and taken off like any adapter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch
from dreamvideo.diffusion import Draw
from dreamvideo.methods.method import Method, Stage, Want, denoising
from dreamvideo.methods.prompts import IDENTIFIER, clip_prompt, subject_prompt

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSubject(Method):
    """All spatial parameters, tuned on pictures.

    min over theta_space of || m eps - m eps_theta(x_t, t, c("a sks dog")) ||^2.
    """

    name: ClassVar[str] = "finetune-subject"
    learns: ClassVar = "image"

    weights: tuple[str, ...] = ("*",)
    """Which of the spatial parameters, as patterns for their names."""
    steps: int = 200
    lr: float = 1e-5
    phrase: str = f"{IDENTIFIER} {{class}}"
    """How a prompt names the subject."""
    template: str = "a {subject}"
    """The prompt; {subject} is the phrase, {class} the class word."""
    mask: bool = True
    """Leave the background out of the loss where masks exist."""
    noise_offset: float = 0.1
    bypass_time: bool = False
    """Skip the layers that mix frames; DreamVideo runs them on one frame."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        subject = {"subject": AdapterSet(Delta(), base.weights("space", self.weights), seed=seed)}
        wants: set[Want] = {"mask"} if self.mask else set()
        return (Stage(name="subject", learn=subject, steps=self.steps, lr=self.lr, wants=wants),)

    def prompt(self, concept: Concept, example: Example) -> str:
        return subject_prompt(concept, example, self.template, phrase=self.phrase)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given(bypass_time=self.bypass_time):
            yield "denoise", denoising(base, batch, draw, offset=self.noise_offset)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset, phrase=self.phrase)


@dataclass(frozen=True, kw_only=True)
class FinetuneMotion(Method):
    """All temporal parameters, tuned on clips and their captions.

    min over theta_time of || eps - eps_theta(x_t, t, c(caption)) ||^2.
    """

    name: ClassVar[str] = "finetune-motion"
    learns: ClassVar = "clip"

    weights: tuple[str, ...] = ("*",)
    """Which of the temporal parameters, as patterns for their names."""
    steps: int = 1000
    lr: float = 1e-5
    drop_text: float = 0.0
    """Chance, per sample, that the caption is the empty string."""
    noise_offset: float = 0.1

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        motion = {"motion": AdapterSet(Delta(), base.weights("time", self.weights), seed=seed)}
        return (Stage(name="motion", learn=motion, steps=self.steps, lr=self.lr, wants={"mask"}),)

    def prompt(self, concept: Concept, example: Example) -> str:
        return clip_prompt(concept, example)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        text = draw.swap(batch.text, batch.empty_text, self.drop_text)
        with base.given():
            yield "denoise", denoising(base, batch, draw, offset=self.noise_offset, text=text)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset)


METHODS = (FinetuneSubject, FinetuneMotion)
