"""What tuning a base on pictures or clips is, whichever of its parameters are tuned.

Fine-tuning, LoRA and their like differ from one another in what they learn and in nothing else.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch, ClassImages
from dreamvideo.diffusion import Draw
from dreamvideo.methods.method import Method, Stage, Want, class_images, denoising, with_prior
from dreamvideo.methods.prompts import IDENTIFIER, clip_prompt, subject_prompt
from dreamvideo.views import View

__all__ = ["MotionTuning", "SubjectTuning"]


@dataclass(frozen=True, kw_only=True)
class SubjectTuning(Method):
    """DreamBooth (Ruiz et al. 2023, eq. 2): tuning binds a rare identifier to the subject.

    || m eps - m eps_theta(x_t, t, c("a sks dog")) ||^2 + lambda || eps' - eps_theta(x'_t, t, c("a dog")) ||^2

    with x' a picture of the class that the frozen base made, where there are such. Question: `learned`: which set is
    it?
    """

    steps: int
    lr: float
    phrase: str = f"{IDENTIFIER} {{class}}"
    """How a prompt names the subject."""
    template: str = "a {subject}"
    """The prompt; {subject} is the phrase, {class} the class word."""
    class_count: int = 0
    """Pictures of the class, made by the frozen base, on which the loss is kept too (prior preservation)."""
    class_prompt: str = "a {class}"
    prior_weight: float = 1.0
    """lambda"""
    flip: bool = False
    """Show pictures mirrored in every second draw."""
    mask: bool = True
    """Leave the background out of the loss where masks exist."""
    noise_offset: float = 0.1
    bypass_time: bool = False
    """Skip the layers that mix frames; DreamVideo runs them on one frame."""

    @abstractmethod
    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        """The set that is learned, fresh, made from `seed`."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        subject = {"subject": self.learned(base, seed=seed)}
        wants: set[Want] = {"mask"} if self.mask else set()
        views = (View(), View(flip=True)) if self.flip else (View(),)
        return (Stage(name="subject", learn=subject, steps=self.steps, lr=self.lr, wants=wants, views=views),)

    def prompt(self, concept: Concept, example: Example) -> str:
        return subject_prompt(concept, example, self.template, phrase=self.phrase)

    def class_images(self, concept: Concept) -> ClassImages | None:
        return class_images(concept, self.class_prompt, self.class_count, bypass_time=self.bypass_time)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given(bypass_time=self.bypass_time):
            yield from with_prior(base, batch, draw, offset=self.noise_offset, weight=self.prior_weight)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset, phrase=self.phrase)


@dataclass(frozen=True, kw_only=True)
class MotionTuning(Method):
    """Tuning on clips and their captions.

    || eps - eps_theta(x_t, t, c(caption)) ||^2. Question: `learned`: which set is it?
    """

    steps: int
    lr: float
    drop_text: float = 0.0
    """Chance, per sample, that the caption is the empty string."""
    noise_offset: float = 0.1

    @abstractmethod
    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        """The set that is learned, fresh, made from `seed`."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        motion = {"motion": self.learned(base, seed=seed)}
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
