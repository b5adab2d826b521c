"""Full-rank deltas of a base's parameters: what fine-tuning learns, kept apart from what it learned on.

    theta = theta_0 + delta

Adam sees the gradient of theta either way, so learning the delta from zero is fine-tuning; weight decay alone differs,
which draws a delta to zero and not theta.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dreamvideo.adapters.graft import Kind, Site
from dreamvideo.adapters.ports import Through

__all__ = ["Delta", "KeyValue"]


@dataclass(frozen=True, kw_only=True)
class Delta(Kind):
    """A delta of one parameter: of a linear layer, a convolution or a norm."""

    label: ClassVar[str] = "delta"
    ports: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    @property
    def serial(self) -> bool:
        return False

    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        return _Delta(site.shape)


@dataclass(frozen=True, kw_only=True)
class KeyValue(Kind):
    """A delta of the weight that makes keys or values of text states (Custom Diffusion, Kumari et al. 2023)."""

    label: ClassVar[str] = "key-value"
    ports: ClassVar[frozenset[str]] = frozenset({"out"})

    detach_start: bool = True
    """The start token, equal in every prompt, teaches the delta nothing (official code)."""

    @property
    def serial(self) -> bool:
        return False

    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        return _KeyValue(site.shape, self.detach_start)


class _Delta(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape))


class _KeyValue(nn.Module):
    """`forward` maps text states (B, L, in) to a delta of keys or values (B, L, out)."""

    def __init__(self, shape: tuple[int, ...], detach_start: bool) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape))
        self.detach_start = detach_start

    def forward(self, x: Tensor, through: Through) -> Tensor:
        result = through(x, self.delta, None)
        if not self.detach_start:
            return result
        return torch.cat([result[:, :1].detach(), result[:, 1:]], dim=1)
