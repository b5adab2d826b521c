"""DreamVideo's identity and motion adapters (paper, eq. 2-4; architectures of supplementary Tab. S9).

    identity:  h' = h + gelu(h W_down) W_up
    motion:    h' = h + gelu((h + lambda (e W_cond)) W_down) W_up

As in the official code all linear layers have a bias (the formulas show none), GELU is exact, and W_up starts at
zero with its bias, so that a fresh adapter changes nothing. The first h is the stream itself: a module here returns
the delta alone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamvideo.adapters.graft import Kind, Site
from dreamvideo.adapters.ports import Condition

__all__ = ["Bottleneck", "Form", "Placement"]

Form = Literal["bottleneck", "linear bottleneck", "linear", "nonlinear"]
Placement = Literal["parallel", "serial"]


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Kind):
    """A residual adapter on a transformer block."""

    label: ClassVar[str] = "bottleneck"
    ports: ClassVar[frozenset[str]] = frozenset({"attn1", "attn2", "ff"})

    hidden: int | None = None
    """Width of the bottleneck; half the stream's width when None (supplementary; Tab. S5 uses 32)."""
    condition: int | None = None
    """Width of the image vector for appearance guidance; None: no condition layer (identity adapter)."""
    placement: Placement = "parallel"
    """Beside the branch or after it (Tab. S6)."""
    form: Form = "bottleneck"
    """Tab. S9: `bottleneck` is DreamVideo's; `linear bottleneck` has no GELU; `linear` is one zero-initialised
    layer of the stream's width, `nonlinear` the same with a GELU after it."""

    @property
    def serial(self) -> bool:
        return self.placement == "serial"

    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        return _Adapter(site.width, self.hidden or site.width // 2, self.condition, self.form, generator)


class _Adapter(nn.Module):
    """`forward` maps the stream (N, L, width) and the condition to a delta of the stream's shape."""

    def __init__(self, width: int, hidden: int, condition: int | None, form: Form, generator: torch.Generator) -> None:
        super().__init__()
        self.condition = None if condition is None else _linear(condition, width, generator)
        self.down = _linear(width, hidden, generator) if "bottleneck" in form else None
        self.up = _zero_linear(width if self.down is None else hidden, width)
        self.inner = nn.GELU() if form == "bottleneck" else nn.Identity()
        self.outer = nn.GELU() if form == "nonlinear" else nn.Identity()

    def forward(self, x: Tensor, given: Condition | None) -> Tensor:
        first = self.up if self.down is None else self.down
        y = first(x)
        if self.condition is not None and given is not None:
            # (x + s) W = x W + s W: a sum of the bottleneck's width, and no stream of its own to keep for the backward
            # pass. Streams are (B * h * w, F, width) or (B * F, h * w, width): B is the slowest index of both.
            shift = F.linear(given.strength * self.condition(given.appearance), first.weight)  # (B, 1, hidden)
            y = (y.unflatten(0, (len(shift), -1)) + shift[:, None]).flatten(0, 1)
        if self.down is not None:
            y = self.up(self.inner(y))
        return self.outer(y)


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """nn.Linear with PyTorch's default distribution, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device=torch.get_default_device())
    bound = fan_in**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def _zero_linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device=torch.get_default_device())
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
