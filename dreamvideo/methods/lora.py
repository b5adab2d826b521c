"""The LoRA baseline of DreamVideo (supplementary, section 1.3): a low-rank set for a subject, another for a motion.

Reported at 6M parameters, rank 32. The layers are said in words alone: K and V of the spatial cross-attention for the
subject, K and V of "all attention layers" (its slides: of the self-attention layers) for the motion. Read word for word
that is 1,847,296 + 3,325,952 = 4.93 x 2^20; with the spatial self-attention among "all" it is 6.46 x 2^20, and with Q
beside K and V in time alone 6.52 x 2^20. The default is the first reading; `layers` and `axes` make the others.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.lora import LoRA
from dreamvideo.bases.base import VideoBase
from dreamvideo.methods.tuning import MotionTuning, SubjectTuning

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class LoraSubject(SubjectTuning):
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

    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        kind = LoRA(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        return AdapterSet(kind, base.linears("space", self.layers), seed=seed)


@dataclass(frozen=True, kw_only=True)
class LoraMotion(MotionTuning):
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

    def learned(self, base: VideoBase, *, seed: int) -> AdapterSet:
        kind = LoRA(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        sites = [site for axis in self.axes for site in base.linears(axis, self.layers)]
        return AdapterSet(kind, sites, seed=seed)


METHODS = (LoraSubject, LoraMotion)
