"""Layered neural atlases (Kasten et al. 2021): a clip as two pictures, and where each pixel lies in them.

    colour(p) = alpha(p) A(f(p)) + (1 - alpha(p)) A(b(p)),   p = (x, y, t)

f and b map a pixel to a place (u, v) in the foreground's and in the background's picture, which share one network A:
the one lives at [0, 1]^2, the other at [-1, 0]^2. The shapes of the networks are those of the official code.
`unwrapping` learns them.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

__all__ = ["SCALE", "Atlas", "AtlasConfig"]

SCALE = 0.8
"""Of the places at the start: (u, v) = 0.8 (x, y), which leaves room at the rim."""
_SLICE = 2**16
"""Points that pass the networks at once where nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class AtlasConfig:
    """How the atlases are learned."""

    steps: Annotated[int, Field(ge=1)] = 400_000
    lr: float = 1e-4
    points: Annotated[int, Field(ge=1)] = 10_000
    """Pixels of the clip that a step sees."""
    width: Annotated[int, Field(ge=1)] = 256
    """Of every network."""
    bands: Annotated[int, Field(ge=1)] = 10
    """Octaves of the atlas's positional encoding; half as many serve the opacity."""
    settle: Annotated[int, Field(ge=0)] = 100
    """Passes over the frames, before the first step, in which the maps learn to leave everything in its place."""
    rigid_steps: int = 5_000
    """Steps in which also points far from each other are held together."""
    rigid_reach: float = 100
    """Pixels between these."""
    mask_steps: int = 10_000
    """Steps in which the opacity is told of the masks."""


class _Network(nn.Module):
    """Points (N, D) -> (N, outputs) in (-1, 1): ReLU layers, and at some of them the encoded points once more."""

    def __init__(
        self, inputs: int, outputs: int, *, layers: int, width: int, bands: int = 0, again: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.bands, self.again = bands, again
        encoded = inputs * 2 * bands if bands else inputs
        widths = [encoded] + [width] * (layers - 1)
        self.layers = nn.ModuleList(
            nn.Linear(size + (encoded if number in again else 0), outputs if number == layers - 1 else width)
            for number, size in enumerate(widths)
        )

    def forward(self, points: Tensor) -> Tensor:
        x = encoded = self.encoded(points)
        for number, layer in enumerate(self.layers):
            x = F.relu(x) if number else x
            x = layer(torch.cat([x, encoded], dim=-1) if number in self.again else x)
        return x.tanh()

    def encoded(self, points: Tensor) -> Tensor:
        """sin and cos of 2^k pi x; without bands the points themselves."""
        if not self.bands:
            return points
        angles = points[..., None] * (torch.pi * 2.0 ** torch.arange(self.bands, device=points.device))
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class Atlas(nn.Module):
    """The layers of a clip of F frames of H x W pixels.

    Points (N, 3) are x, y, t with the longer side, and the time, running through [-1, 1].
    """

    def __init__(self, config: AtlasConfig, *, frames: int, height: int, width: int) -> None:
        super().__init__()
        self.half = max(height, width) / 2
        self.shape = (frames, height, width)
        size, bands = config.width, config.bands
        self.maps = nn.ModuleList(_Network(3, 2, layers=layers, width=size) for layers in (6, 4))
        self.opacity = _Network(3, 1, layers=8, width=size, bands=max(1, bands // 2))
        self.picture = _Network(2, 3, layers=8, width=size, bands=bands, again=(4, 7))

    def points(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3), x, y and the frame's number -> points (N, 3)."""
        units = torch.tensor([self.half, self.half, self.shape[0] / 2]).to(pixels)
        return pixels / units - 1

    def every_pixel(self) -> Tensor:
        """(F H W, 3), of a clip on this device."""
        sides = (torch.arange(side, dtype=torch.float32, device=self.device) for side in self.shape)
        t, y, x = torch.meshgrid(*sides, indexing="ij")
        return torch.stack([x, y, t], dim=-1).flatten(0, 2)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def places(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, 3) -> places (N, 2) in the foreground's and the background's own square [-1, 1]^2."""
        foreground, background = (network(points) for network in self.maps)
        return foreground, background

    def alpha(self, points: Tensor) -> Tensor:
        """Points (N, 3) -> opacity of the foreground (N, 1) in (0, 1)."""
        return 0.99 * (0.5 * (self.opacity(points) + 1)) + 0.001

    def colours(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        """Places (N, 2) in both squares -> colours (N, 3) in [0, 1]."""
        said = self.picture(torch.cat([0.5 * foreground + 0.5, 0.5 * background - 0.5]))
        both = (0.5 * (said + 1)).chunk(2)
        return both[0], both[1]

    @torch.no_grad()
    def layout(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where every pixel lies: places (F, H, W, 2) in the foreground and the background, opacity (F, 1, H, W)."""
        points = self.points(self.every_pixel())
        parts = [(*self.places(part), self.alpha(part)) for part in points.split(_SLICE)]
        foreground, background, alpha = (torch.cat(part).unflatten(0, self.shape) for part in zip(*parts, strict=True))
        return foreground, background, alpha.permute(0, 3, 1, 2)

    @torch.no_grad()
    def painted(self) -> Tensor:
        """The clip as the layers have it, (F, 3, H, W) in [0, 1]."""
        points = self.points(self.every_pixel())
        parts = []
        for part in points.split(_SLICE):
            alpha, (foreground, background) = self.alpha(part), self.colours(*self.places(part))
            parts.append(alpha * foreground + (1 - alpha) * background)
        return torch.cat(parts).unflatten(0, self.shape).permute(0, 3, 1, 2)
