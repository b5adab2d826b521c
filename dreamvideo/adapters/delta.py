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

__all__ = ["Delta"]


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

    def change(self, adapter: nn.Module) -> Tensor:
        return adapter.get_parameter("delta")


class _Delta(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape))
