"""Textual inversion (Gal et al. 2022) as DreamVideo runs it: a word, and nothing else, is learned."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch
from dreamvideo.diffusion import Draw
from dreamvideo.methods.method import Method, Stage, Want, denoising, initial_word
from dreamvideo.methods.prompts import subject_prompt

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Method):
    """A word, and nothing else, is learned.

    min over v of || eps - eps_theta(x_t, t, c(v)) ||^2, v the token vectors of "S*" in "a S*".
    """

    name: ClassVar[str] = "textual-inversion"
    learns: ClassVar = "image"

    vectors: int = 1
    """Token vectors of the word."""
    steps: int = 3000
    lr: float = 1e-4
    template: str = "a {word}"
    """The prompt; {word} is the learned word, {class} its class word."""
    mask: bool = True
    """Leave the background out of the loss where masks exist."""
    noise_offset: float = 0.1
    bypass_time: bool = False
    """Skip the layers that mix frames; DreamVideo runs them on one frame."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        word = initial_word(base, concept, vectors=self.vectors)
        wants: set[Want] = {"mask"} if self.mask else set()
        return (Stage(name="word", learn={"word": word}, steps=self.steps, lr=self.lr, live_text=True, wants=wants),)

    def prompt(self, concept: Concept, example: Example) -> str:
        return subject_prompt(concept, example, self.template)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given(bypass_time=self.bypass_time):
            yield "denoise", denoising(base, batch, draw, offset=self.noise_offset)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset)


METHODS = (TextualInversion,)
