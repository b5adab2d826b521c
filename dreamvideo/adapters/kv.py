"""Deltas of the weights that make keys and values of text states (Custom Diffusion, Kumari et al. 2023, section 3.1).

    k = (W_k + delta_k) c,   v = (W_v + delta_v) c

The delta's share is computed beside the layer and not in its weight, because the start token's share is detached.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dreamvideo.adapters.graft import Kind, Site
from dreamvideo.adapters.ports import Through, start_detached

__all__ = ["KeyValue"]


@dataclass(frozen=True, kw_only=True)
class KeyValue(Kind):
    """A full-rank delta of one linear layer over text states."""

    label: ClassVar[str] = "key-value"
    ports: ClassVar[frozenset[str]] = frozenset({"out"})

    detach_start: bool = True
    """The start token, equal in every prompt, teaches the delta nothing (official code)."""

    @property
    def serial(self) -> bool:
        return False

    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        return _KeyValue(site.shape, self.detach_start)

    def change(self, adapter: nn.Module) -> Tensor:
        return adapter.get_parameter("delta")


class _KeyValue(nn.Module):
    """`forward` maps text states (B, L, in) to a delta of keys or values (B, L, out)."""

    def __init__(self, shape: tuple[int, ...], detach_start: bool) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape))
        self.detach_start = detach_start

    def forward(self, x: Tensor, through: Through) -> Tensor:
        result = through(x, self.delta, None)
        return start_detached(result) if self.detach_start else result
