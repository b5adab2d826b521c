"""MotionDirector (Zhao et al. 2023): what a clip looks like and how it moves, in two sorts of low-rank deltas.

A spatial set for every clip learns its looks from single frames; one temporal set, shared by all clips, learns what is
left. Only the temporal set is kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.lora import LoRA
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch
from dreamvideo.diffusion import Draw
from dreamvideo.errors import BadConfig
from dreamvideo.methods.method import Method, Stage
from dreamvideo.methods.prompts import clip_prompt

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class MotionDirector(Method):
    """Decoupled appearance and motion: spatial and temporal low-rank deltas.

    spatial:   || eps_i - eps_theta,s(x_t,i, t, c) ||^2 on one random frame i, the layers that mix frames skipped
    temporal:  || eps - eps_theta,s,m(x_t, t, c) ||^2 + || phi(eps) - phi(eps_theta,s,m(x_t, t, c)) ||^2
               phi(eps)_j = sqrt(beta^2 + 1) eps_j - beta eps_anchor, the anchor a random frame

    Each term teaches its own set; in the second the clip's spatial set takes part as it is.
    """

    name: ClassVar[str] = "motion-director"
    learns: ClassVar = "clip"

    rank: int = 32
    dropout: float = 0.1
    """In both sorts of deltas, while learning (official code)."""
    temporal: tuple[str, ...] = ("attn1.*", "attn2.*", "ff.*")
    """Linear layers of temporal blocks, as patterns."""
    spatial: tuple[str, ...] = ("attn1.*", "ff.*")
    """Linear layers of spatial blocks; not the cross-attention, which hears of the motion."""
    steps: int = 150
    lr: float = 5e-4
    skip_spatial: float = 0.2
    """Chance that a step does without the spatial set (official code)."""
    beta: float = 1.0
    """Strength of the debiasing; 0 counts the plain loss twice."""
    noise_offset: float = 0.0
    inversion: float = 0.5
    """Share of the clip's inverted noise in the start when sampling; 0 starts from noise alone."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        kind = LoRA(rank=self.rank, dropout=self.dropout)
        looks = {
            _looks_of(number): AdapterSet(kind, base.linears("space", self.spatial), seed=seed + 1 + number)
            for number in range(len(concept.examples))
        }
        for adapters in looks.values():
            # They take part where `terms` says so: not in another clip's steps, and not in what is sampled.
            adapters.scale(0.0)
        motion = {"motion": AdapterSet(kind, base.linears("time", self.temporal), seed=seed)}
        return (
            Stage(
                name="motion",
                learn={**motion, **looks},
                aside=looks.keys(),
                steps=self.steps,
                lr=self.lr,
                wants={"mask"},
            ),
        )

    def prompt(self, concept: Concept, example: Example) -> str:
        return clip_prompt(concept, example)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        if len({*batch.numbers}) != 1:
            raise BadConfig("motion-director learns from one clip a step: --set train.batch=1")
        looks, motion = sets[_looks_of(batch.numbers[0])], sets["motion"]
        x_t, t, target = draw.noised(batch.latents, offset=self.noise_offset)
        frames, alone = x_t.shape[2], draw.chance(self.skip_spatial)
        chosen, anchor = draw.index(frames), draw.index(frames)
        mask = 1.0 if batch.mask is None else batch.mask
        if not alone:
            one = slice(chosen, chosen + 1)
            with looks.scaled(1.0), motion.scaled(0.0), base.given(bypass_time=True):
                difference = base.predict(x_t[:, :, one], t, batch.text).float() - target[:, :, one]
                counted = difference if batch.mask is None else batch.mask[:, :, one] * difference
                yield "spatial", counted.square().mean()
        with looks.scaled(0.0 if alone else 1.0), looks.frozen(), base.given():
            difference = base.predict(x_t, t, batch.text).float() - target
            # phi is linear: the difference of two phis is the phi of the difference.
            debiased = (self.beta**2 + 1) ** 0.5 * difference - self.beta * difference[:, :, anchor : anchor + 1]
            yield "temporal", (mask * difference).square().mean() + (mask * debiased).square().mean()

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset, inversion=self.inversion)


def _looks_of(number: int) -> str:
    """The name of a clip's spatial set."""
    return f"looks-{number}"


METHODS = (MotionDirector,)
