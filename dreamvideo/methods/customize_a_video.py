"""Customize-A-Video (Ren et al. 2024): absorbers learn what a clip looks like, so that the motion need not.

First the absorbers, spatial low-rank deltas and a word, learn the clip's frames as pictures, in no order; then
low-rank deltas of the attention over frames learn the clip with the absorbers in place. Only these are kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.lora import LoRA
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch
from dreamvideo.diffusion import Draw, generator
from dreamvideo.methods.method import Method, Stage, denoising, initial_word
from dreamvideo.methods.prompts import clip_prompt, filled
from dreamvideo.views import PROMPT, View, random_patches

__all__ = ["METHODS"]

ATTENTION = ("attn1.*", "attn2.*")
"""Queries, keys, values and outputs: the text names the first three, the sizes that it reports have all four."""


@dataclass(frozen=True, kw_only=True)
class CustomizeAVideo(Method):
    """Appearance absorbers, then low-rank deltas of the attention over frames.

    absorb:  min over s, v of || eps_i - eps_theta+s(x_t,i, t, c(still, v)) ||^2, frame i alone, no layer mixes frames
    motion:  min over m of    || eps - eps_theta+s+m(x_t, t, c(caption, v)) ||^2

    theta + s = theta + alpha B A; without s and v the second is plain low-rank tuning.
    """

    name: ClassVar[str] = "customize-a-video"
    learns: ClassVar = "clip"

    rank: int = 4
    alpha: float = 1.0
    """The motion's delta is multiplied by it, whatever the rank."""
    steps: int = 500
    lr: float = 5e-4
    looks_rank: int = 1
    """Of the spatial deltas that absorb; 0 does without."""
    looks_alpha: float = 0.5
    """The spatial delta is multiplied by it, whatever the rank."""
    vectors: int = 4
    """Token vectors of the word that absorbs, 2 to 6 depending on the clip; 0 does without."""
    start: str = "scene"
    """What the word starts as."""
    absorb_steps: int = 300
    absorb_lr: float = 5e-5
    still: str = "{caption}"
    """What single frames are said to be: the part of the caption that speaks of no motion; {caption} is all of it."""
    patches: int = 0
    """Random parts of the frames from which the absorbers learn, for motions that are mostly posture; 0: whole frames.
    Every one of them encodes the clip once more."""
    noise_offset: float = 0.0

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage, ...]:
        low_rank = LoRA(rank=self.rank, alpha=self.alpha * self.rank)
        motion = {"motion": AdapterSet(low_rank, base.linears("time", ATTENTION), seed=seed)}
        absorbers = {}
        if self.looks_rank:
            low_rank = LoRA(rank=self.looks_rank, alpha=self.looks_alpha * self.looks_rank)
            absorbers["looks"] = AdapterSet(low_rank, base.linears("space", ATTENTION), seed=seed + 1)
        if self.vectors:
            absorbers["word"] = initial_word(base, concept, vectors=self.vectors, start=self.start)
        word = f" <{concept.name}>" if self.vectors else ""
        still = filled(self.still, {"caption": PROMPT}) + word
        parts = random_patches(self.patches, generator(seed, "patches")) or (View(),)
        absorb = Stage(
            name="absorb",
            learn=absorbers,
            aside=absorbers.keys(),
            steps=self.absorb_steps,
            lr=self.absorb_lr,
            live_text=self.vectors > 0,
            views=[replace(part, words=still, frames=1) for part in parts],
        )
        learn = Stage(
            name="motion",
            learn=motion,
            hold=absorbers,
            aside=absorbers.keys(),
            steps=self.steps,
            lr=self.lr,
            wants={"mask"},
            views=(View(words=PROMPT + word),),
        )
        return (absorb, learn) if absorbers else (learn,)

    def prompt(self, concept: Concept, example: Example) -> str:
        return clip_prompt(concept, example)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        # Only the single frames of the first stage can do without the layers that mix frames.
        with base.given(bypass_time=True):
            yield "denoise", denoising(base, batch, draw, offset=self.noise_offset)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset)


METHODS = (CustomizeAVideo,)
