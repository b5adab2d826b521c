"""Tune-A-Video (Wu et al. 2022): an image model becomes a model of one clip.

Run on video, its self-attention looks at the first frame and the one before, and behind every transformer block stands
a new attention over frames. That one is learned whole; of the image model only the queries are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.ports import Reach
from dreamvideo.adapters.temporal_attention import TemporalAttention
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch
from dreamvideo.diffusion import Draw
from dreamvideo.methods.method import Method, Stage, denoising
from dreamvideo.methods.prompts import clip_prompt

__all__ = ["METHODS"]

QUERIES = ("*.attn1.to_q.weight", "*.attn2.to_q.weight")


@dataclass(frozen=True, kw_only=True)
class TuneAVideo(Method):
    """An image model learns attention over frames, and other queries, from a clip and its caption.

    min over W_q and the attention over frames of || eps - eps_theta(x_t, t, c(caption)) ||^2, where in frame f

    self-attention:  Q = W_q z_f,  K = W_k [z_0, z_f-1],  V = W_v [z_0, z_f-1]
    text:            Q = W_q z_f,  K = W_k c,             V = W_v c
    """

    name: ClassVar[str] = "tune-a-video"
    learns: ClassVar = "clip"

    heads: int = 8
    """Of the attention over frames."""
    reach: Reach = "sparse-causal"
    """At which frames self-attention looks; Video-P2P has it look at the first one."""
    steps: int = 500
    lr: float = 3e-5
    noise_offset: float = 0.0
    inversion: float = 1.0
    """Share of the clip's inverted noise in the start when sampling; 0 starts from noise alone."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        learned = {
            "motion": AdapterSet(TemporalAttention(heads=self.heads), base.sites("time", ("time",)), seed=seed),
            "queries": AdapterSet(Delta(), base.weights("space", QUERIES), seed=seed),
        }
        return (Stage(name="motion", learn=learned, steps=self.steps, lr=self.lr, wants={"mask"}),)

    def prompt(self, concept: Concept, example: Example) -> str:
        return clip_prompt(concept, example)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given(), base.reaching(self.reach):
            yield "denoise", denoising(base, batch, draw, offset=self.noise_offset)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset, inversion=self.inversion, reach=self.reach)


METHODS = (TuneAVideo,)
