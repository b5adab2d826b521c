"""Dreamix (Molad et al. 2023) as DreamVideo reproduces it: DreamBooth on the spatial parameters of a video base.

The original is closed, runs on Imagen Video and mixes whole clips with unordered frames; the comparison keeps the
fine-tune on a subject's pictures alone (supplementary, section 1.1).
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
from dreamvideo.data import Batch, ClassImages
from dreamvideo.diffusion import Draw
from dreamvideo.methods.method import Method, Stage, Want, class_images, with_prior
from dreamvideo.methods.prompts import IDENTIFIER, subject_prompt

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class Dreamix(Method):
    """DreamBooth on a video base: spatial parameters bind a rare identifier to the subject.

    || eps - eps_theta(x_t, t, c("a sks dog")) ||^2 + lambda || eps' - eps_theta(x'_t, t, c("a dog")) ||^2

    with x' a picture of the class that the frozen base made (Ruiz et al. 2023, eq. 2); the comparison leaves the second
    term out.
    """

    name: ClassVar[str] = "dreamix"
    learns: ClassVar = "image"

    weights: tuple[str, ...] = ("*",)
    """Which of the spatial parameters, as patterns for their names."""
    steps: int = 200
    lr: float = 1e-5
    phrase: str = f"{IDENTIFIER} {{class}}"
    """How a prompt names the subject."""
    template: str = "a {subject}"
    """The prompt; {subject} is the phrase, {class} the class word."""
    class_count: int = 0
    """Pictures of the class, made by the frozen base, on which the loss is kept too (prior preservation)."""
    class_prompt: str = "a {class}"
    prior_weight: float = 1.0
    """lambda"""
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

    def class_images(self, concept: Concept) -> ClassImages | None:
        return class_images(concept, self.class_prompt, self.class_count)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given(bypass_time=self.bypass_time):
            yield from with_prior(base, batch, draw, offset=self.noise_offset, weight=self.prior_weight)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset, phrase=self.phrase)


METHODS = (Dreamix,)
