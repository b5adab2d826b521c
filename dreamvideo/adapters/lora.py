"""Low-rank deltas of linear and convolutional layers (Hu et al. 2022, section 4.1).

    y = layer(x) + dropout(alpha / r  B A x),   A (r, in, *kernel), B (out, r)

A is drawn from N(0, 1/r^2) and B is zero, as in the code that the papers' LoRA baselines and MotionDirector run; A of a
convolution is a convolution of the layer's own kernel and stride, B mixes channels alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamvideo.adapters.graft import Kind, Site
from dreamvideo.adapters.ports import Through, start_detached

__all__ = ["LoRA"]


@dataclass(frozen=True, kw_only=True)
class LoRA(Kind):
    """A low-rank delta on a layer's output."""

    label: ClassVar[str] = "lora"
    ports: ClassVar[frozenset[str]] = frozenset({"out"})

    rank: int = 32
    alpha: float | None = None
    """The delta is multiplied by alpha / rank; rank when None, so by 1."""
    dropout: float = 0.0
    """Chance that a value of the delta is left out while the set is learned (MotionDirector: 0.1)."""
    detach_start: bool = False
    """On keys and values of text states: the start token, equal in every prompt, teaches the delta nothing
    (CustomCrafter)."""

    @property
    def serial(self) -> bool:
        return False

    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        return _LowRank(site.shape, self.rank, self.factor, self.dropout, self.detach_start, generator)

    @property
    def factor(self) -> float:
        """On the product of the two."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def change(self, adapter: nn.Module) -> Tensor:
        up, down = adapter.get_parameter("up"), adapter.get_parameter("down")
        return self.factor * torch.tensordot(up, down, dims=1)


class _LowRank(nn.Module):
    """`forward` maps a layer's input, (..., in) or (N, in, *size), to a delta of its output's shape."""

    def __init__(
        self,
        shape: tuple[int, ...],
        rank: int,
        factor: float,
        dropout: float,
        detach_start: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        fan_out, *fan_in = shape
        self.down = nn.Parameter(torch.empty(rank, *fan_in))
        self.up = nn.Parameter(torch.zeros(fan_out, rank))
        nn.init.normal_(self.down, std=1 / rank, generator=generator)
        self.factor = factor
        self.dropout = nn.Dropout(dropout)
        self.detach_start = detach_start

    def forward(self, x: Tensor, through: Through) -> Tensor:
        low = through(x, self.down, None)
        channels_last = self.down.ndim == 2
        delta = F.linear(low if channels_last else low.movedim(1, -1), self.up)
        delta = delta if channels_last else delta.movedim(-1, 1)
        return self.dropout(self.factor * (start_detached(delta) if self.detach_start else delta))
