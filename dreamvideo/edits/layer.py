"""The layer of a clip that is edited: its picture, and how what is painted on it is seen in the frames."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo.edits.atlas import Atlas

__all__ = ["Layer", "Which"]

Which = Literal["foreground", "background"]

_RIM = 0.05
"""Of a box around what is used of a picture, on each side, as a part of the box."""


@dataclass(frozen=True)
class Layer:
    """One of the two layers of an atlas, as far as the clip shows it."""

    picture: Tensor
    """(1, 3, h, w) in [0, 1]."""
    places: Tensor
    """(F, H, W, 2): where in the picture each pixel of the clip lies, from -1 to 1 on both sides."""
    share: Tensor
    """(F, 1, H, W) in [0, 1]: how much of each pixel of the clip is this layer."""

    @classmethod
    def of(cls, layers: Atlas, which: Which, *, side: int) -> "Layer":
        """Render the picture; `side` are the pixels of the whole square, of which the clip uses a part."""
        foreground, background, alpha = layers.layout()
        number = ("foreground", "background").index(which)
        places, share = (foreground, alpha) if number == 0 else (background, 1 - alpha)
        low, high = _box(_used(places, share))
        columns, rows = (max(2, math.ceil(float(length) * side / 2)) for length in high - low)
        x, y = (low[i] + (high[i] - low[i]) * _centres(n).to(low) for i, n in enumerate((columns, rows)))
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
        with torch.no_grad():
            colours = layers.colours(at, at)[number]
        picture = colours.view(1, rows, columns, 3).permute(0, 3, 1, 2)
        return cls(picture, 2 * (places - low) / (high - low) - 1, share)

    def cut(self, frames: Sequence[int], top: int, left: int, height: int, width: int, *, crop: bool) -> "Layer":
        """A window of some frames; with `crop` only what is seen there of the picture, else all of it."""
        places = self.places[frames, top : top + height, left : left + width]
        share = self.share[frames, :, top : top + height, left : left + width]
        if not crop:
            return Layer(self.picture, places, share)
        used = _used(places, share)
        sides = torch.tensor([self.picture.shape[-1], self.picture.shape[-2]]).to(places)
        low, high = _box(used)
        # One pixel more on each side: what is seen between two is made of both.
        first = (((low + 1) / 2 * sides).floor() - 1).clamp(min=0)
        last = (((high + 1) / 2 * sides).ceil() + 1).minimum(sides)
        (x0, y0), (x1, y1) = first.long().tolist(), last.long().tolist()
        pixels = (places + 1) / 2 * sides
        return Layer(self.picture[..., y0:y1, x0:x1], 2 * (pixels - first) / (last - first) - 1, share)

    def shown(self, edit: Tensor) -> Tensor:
        """An edit (1, 4, h, w) painted on the picture -> (F, 4, H, W): its colours in the frames, and its opacity times
        the layer's share."""
        seen = F.grid_sample(
            edit.expand(len(self.places), -1, -1, -1), self.places, padding_mode="border", align_corners=False
        )
        return torch.cat([seen[:, :3], self.share * seen[:, 3:]], dim=1)


def _used(places: Tensor, share: Tensor) -> Tensor:
    """The places (N, 2) of pixels that are mostly this layer; of those that are it most, where none is."""
    return places[share[:, 0] > min(0.5, float(share.max()) / 2)]


def _box(places: Tensor) -> tuple[Tensor, Tensor]:
    """The corners (2,) of a box around places (N, 2), within the square."""
    low, high = places.amin(dim=0), places.amax(dim=0)
    rim = _RIM * (high - low) + 1e-3
    return (low - rim).clamp(min=-1), (high + rim).clamp(max=1)


def _centres(count: int) -> Tensor:
    """The middles of `count` pixels that fill [0, 1]."""
    return (torch.arange(count) + 0.5) / count
