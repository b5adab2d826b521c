"""CustomCrafter (Wu et al. 2024): low-rank deltas of the spatial attention and a word, held back in the first steps.

What moves is decided early in sampling and what it looks like late: with a smaller weight early on, the base's own
motion survives. The official code trains on VideoCrafter2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.lora import LoRA
from dreamvideo.adapters.weight import Weight
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch, ClassImages
from dreamvideo.diffusion import Draw, generator
from dreamvideo.methods.method import Method, Stage, class_images, initial_word, with_prior
from dreamvideo.methods.prompts import class_word, filled, subject_prompt
from dreamvideo.views import PROMPT, View, random_views

__all__ = ["METHODS"]

ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q")
TEXT = ("attn2.to_k", "attn2.to_v")
ERRORS = {"l2": torch.square, "l1": torch.abs}


@dataclass(frozen=True, kw_only=True)
class CustomCrafter(Method):
    """Queries, keys and values of the spatial attention are learned in low rank, together with a word.

    min over A, B, v of || eps - eps_theta(x_t, t, c("a S* dog")) ||^2 + lambda || eps' - eps_theta(x'_t, t,
    c("a dog")) ||^2,  W' = W + B A,  x the picture as a clip that stands still, x' a picture of the class.

    Sampling (Dynamic Weighted Video Sampling): W + 0.4 B A in the first 5 of 50 steps, W + 0.8 B A in the others.
    """

    name: ClassVar[str] = "custom-crafter"
    learns: ClassVar = "image"

    rank: int = 4
    detach_start: bool = True
    """The start token, equal in every prompt, teaches keys and values nothing."""
    steps: int = 10_000
    lr: float = 3e-5
    frames: int = 4
    """How often the picture is repeated as a clip (official code); 1 learns from single frames."""
    phrase: str = "{word} {class}"
    """How a prompt names the subject."""
    templates: tuple[str, ...] = ("video of a {subject}", "{subject}", "a static video of a {subject}", "a {subject}")
    """The prompts, of which each step draws one; {subject} is the phrase, or a picture's own caption."""
    shown: int = 64
    """Views of every picture: smaller, larger, each with words that say so; 0 shows it as it is."""
    smallest: float = 0.4
    """The least scale of a view."""
    flip: float = 0.5
    """Chance that a view is mirrored."""
    class_count: int = 200
    """Pictures of the class, made by the frozen base; 0 does without."""
    class_prompt: str = "a {class}"
    prior_weight: float = 1.0
    """lambda"""
    loss: Literal["l2", "l1"] = "l2"
    """Squares or, as in the official config, absolute errors."""
    noise_offset: float = 0.0
    early: float = 0.4
    """Weight of the deltas in the first denoising steps."""
    late: float = 0.8
    """Weight in the others."""
    early_share: float = 0.1
    """Share of the denoising steps that are the first: K / T."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        text = LoRA(rank=self.rank, detach_start=self.detach_start)
        learned = {
            "subject": AdapterSet(LoRA(rank=self.rank), base.linears("space", ATTENTION), seed=seed),
            "text": AdapterSet(text, base.linears("space", TEXT), seed=seed + 1),
            "word": initial_word(base, concept, vectors=1),
        }
        shown = random_views(self.shown, generator(seed, "views"), flip=self.flip, smallest=self.smallest)
        values = {"subject": PROMPT, "word": f"<{concept.name}>", "class": class_word(concept)}
        views = [
            replace(view, words=view.said(filled(template, values)), frames=self.frames)
            for view in shown or (View(),)
            for template in self.templates
        ]
        return (Stage(name="subject", learn=learned, steps=self.steps, lr=self.lr, live_text=True, views=views),)

    def prompt(self, concept: Concept, example: Example) -> str:
        return subject_prompt(concept, example, "{subject}", phrase=self.phrase)

    def class_images(self, concept: Concept) -> ClassImages | None:
        return class_images(concept, self.class_prompt, self.class_count, bypass_time=False)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given():
            yield from with_prior(
                base,
                batch,
                draw,
                offset=self.noise_offset,
                weight=self.prior_weight,
                by_area=True,
                error=ERRORS[self.loss],
            )

    def sampling(self) -> Sampling:
        weight = Weight(((0.0, self.early), (self.early_share, self.late)))
        return Sampling(noise_offset=self.noise_offset, weight=weight, phrase=self.phrase)


METHODS = (CustomCrafter,)
