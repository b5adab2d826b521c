"""The LoRA baseline of DreamVideo (supplementary, section 1.3): a low-rank set for a subject, another for a motion.

Reported at 6M parameters, rank 32. The layers are said in words alone: K and V of the spatial cross-attention for the
subject, K and V of "all attention layers" (its slides: of the self-attention layers) for the motion. Read word for word
that is 1,847,296 + 3,325,952 = 4.93 x 2^20; with the spatial self-attention among "all" it is 6.46 x 2^20, and with Q
beside K and V in time alone 6.52 x 2^20. The default is the first reading; `layers` and `axes` make the others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.lora import LoRA
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch, ClassImages
from dreamvideo.diffusion import Draw
from dreamvideo.methods.method import Method, Stage, Want, class_images, denoising, with_prior
from dreamvideo.methods.prompts import IDENTIFIER, clip_prompt, subject_prompt

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class LoraSubject(Method):
    """DreamBooth on low-rank deltas of spatial layers.

    W' = W + alpha / r  B A  for the keys and values of the text, prompted by a rare identifier and the class word.
    """

    name: ClassVar[str] = "lora-subject"
    learns: ClassVar = "image"

    rank: int = 32
    alpha: float | None = None
    """The delta is multiplied by alpha / rank; by 1 when unset."""
    dropout: float = 0.0
    layers: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")
    """Linear layers of spatial blocks, as patterns: `attn1.*`, `ff.*`, ..."""
    steps: int = 800
    lr: float = 1e-5
    phrase: str = f"{IDENTIFIER} {{class}}"
    """How a prompt names the subject."""
    template: str = "a {subject}"
    """The prompt; {subject} is the phrase, {class} the class word."""
    class_count: int = 0
    """Pictures of the class, made by the frozen base, on which the loss is kept too (prior preservation)."""
    class_prompt: str = "a {class}"
    prior_weight: float = 1.0
    mask: bool = True
    """Leave the background out of the loss where masks exist."""
    noise_offset: float = 0.1
    bypass_time: bool = False
    """Skip the layers that mix frames; DreamVideo runs them on one frame."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        kind = LoRA(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        subject = {"subject": AdapterSet(kind, base.linears("space", self.layers), seed=seed)}
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


@dataclass(frozen=True, kw_only=True)
class LoraMotion(Method):
    """Low-rank deltas of temporal layers, learned from clips and their captions.

    W' = W + alpha / r  B A  for the keys and values of both attentions over time.
    """

    name: ClassVar[str] = "lora-motion"
    learns: ClassVar = "clip"

    rank: int = 32
    alpha: float | None = None
    """The delta is multiplied by alpha / rank; by 1 when unset."""
    dropout: float = 0.0
    layers: tuple[str, ...] = ("attn1.to_k", "attn1.to_v", "attn2.to_k", "attn2.to_v")
    """Linear layers of blocks of the given axes, as patterns."""
    axes: tuple[Literal["space", "time"], ...] = ("time",)
    """With `space` too: "all attention layers" (supplementary)."""
    steps: int = 1000
    lr: float = 1e-5
    drop_text: float = 0.0
    """Chance, per sample, that the caption is the empty string."""
    noise_offset: float = 0.1

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        kind = LoRA(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        sites = [site for axis in self.axes for site in base.linears(axis, self.layers)]
        motion = {"motion": AdapterSet(kind, sites, seed=seed)}
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


METHODS = (LoraSubject, LoraMotion)
