"""Custom Diffusion (Kumari et al. 2023): keys and values of the text's cross-attention, and a word.

Defaults are those of DreamVideo's comparison (supplementary, section 1.1); where it is silent, the released code's.
`dreamvideo.merging` makes one set of keys and values of several.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.kv import KeyValue
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch, ClassImages
from dreamvideo.diffusion import Draw, generator
from dreamvideo.methods.method import Method, Stage, Want, class_images, initial_word, with_prior
from dreamvideo.methods.prompts import subject_prompt
from dreamvideo.views import View, random_views

__all__ = ["METHODS"]

LAYERS = ("attn2.to_k", "attn2.to_v")


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(Method):
    """Keys and values of the text are learned together with a word.

    min over W_k, W_v, v of || eps - eps_theta(x_t, t, c("a S* dog")) ||^2 + lambda || eps' - eps_theta(x'_t, t,
    c("a dog")) ||^2, x' a picture of the class; the start token's key and value teach nothing.
    """

    name: ClassVar[str] = "custom-diffusion"
    learns: ClassVar = "image"

    start: str = "ktn"
    """The rare word that the learned one starts as (token 42170 of CLIP's vocabulary); if empty, the class word."""
    detach_start: bool = True
    """The start token, equal in every prompt, teaches keys and values nothing."""
    steps: int = 250
    lr: float = 4e-5
    phrase: str = "{word} {class}"
    """How a prompt names the subject."""
    template: str = "a {subject}"
    """The prompt; {subject} is the phrase, {word} the learned word, {class} the class word."""
    shown: int = 64
    """Views of every picture: smaller, larger, each with words that say so (official code); 0 shows it as it is."""
    flip: float = 0.0
    """Chance that a view is mirrored."""
    class_count: int = 200
    """Pictures of the class, made by the frozen base; 0 does without."""
    class_prompt: str = "a {class}"
    prior_weight: float = 1.0
    """lambda"""
    mask: bool = False
    """Leave the background out of the loss where masks exist, beside what a view leaves empty."""
    noise_offset: float = 0.1
    bypass_time: bool = False
    """Skip the layers that mix frames; DreamVideo runs them on one frame."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        kind = KeyValue(detach_start=self.detach_start)
        learned = {
            "subject": AdapterSet(kind, base.linears("space", LAYERS), seed=seed),
            "word": initial_word(base, concept, vectors=1, start=self.start),
        }
        views = random_views(self.shown, generator(seed, "views"), flip=self.flip) if self.shown else (View(),)
        wants: set[Want] = {"mask"} if self.mask else set()
        return (
            Stage(
                name="subject",
                learn=learned,
                steps=self.steps,
                lr=self.lr,
                live_text=True,
                wants=wants,
                views=views,
            ),
        )

    def prompt(self, concept: Concept, example: Example) -> str:
        return subject_prompt(concept, example, self.template, phrase=self.phrase)

    def class_images(self, concept: Concept) -> ClassImages | None:
        return class_images(concept, self.class_prompt, self.class_count, bypass_time=self.bypass_time)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given(bypass_time=self.bypass_time):
            yield from with_prior(base, batch, draw, offset=self.noise_offset, weight=self.prior_weight, by_area=True)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset, phrase=self.phrase)


METHODS = (CustomDiffusion,)
