"""Attention over frames that an image model does not have (Tune-A-Video, Wu et al. 2022, section 3.2).

    y = x + softmax(Q K^T / sqrt(d)) V W_out + b_out,    Q, K, V = LN(x) W_q, LN(x) W_k, LN(x) W_v

for every pixel over all frames, behind a spatial transformer block, with no frame positions. W_out starts at zero. So
does b_out here, that a fresh adapter changes nothing; the official code leaves PyTorch's random b_out. Its LayerNorm
has weights that it never learns; here it has none.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamvideo.adapters.graft import Kind, Site
from dreamvideo.adapters.ports import Condition
from dreamvideo.errors import Unsupported

__all__ = ["TemporalAttention"]


@dataclass(frozen=True, kw_only=True)
class TemporalAttention(Kind):
    """Full self-attention over frames on the port `time`: 4 width^2 + width learned values a site."""

    label: ClassVar[str] = "temporal-attention"
    ports: ClassVar[frozenset[str]] = frozenset({"time"})

    heads: int = 8
    """Heads; Stable Diffusion 1 has 8 in every block, and Tune-A-Video as many."""

    @property
    def serial(self) -> bool:
        return False  # The port has no branch to stand behind.

    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        if self.heads < 1 or site.width % self.heads:
            raise Unsupported(f"{site.key}: its width {site.width} cannot be cut into {self.heads} heads")
        return _Attention(site.width, self.heads, generator)


class _Attention(nn.Module):
    """`forward` maps the stream (N, F, width) to a delta of the stream's shape."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (_linear(width, generator) for _ in range(3))
        self.to_out = nn.utils.skip_init(nn.Linear, width, width, device=torch.get_default_device())
        for parameter in self.to_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, given: Condition | None) -> Tensor:
        inner = F.layer_norm(x, x.shape[-1:])
        q, k, v = (
            layer(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _linear(width: int, generator: torch.Generator) -> nn.Linear:
    """A square nn.Linear without bias, with PyTorch's default distribution, from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, width, width, bias=False, device=torch.get_default_device())
    nn.init.uniform_(layer.weight, -(width**-0.5), width**-0.5, generator=generator)
    return layer
