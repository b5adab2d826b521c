"""What CLIP says of an edit: the losses of Text2LIVE (Bar-Tal et al. 2022, sections 3.1 and 3.2) and its views.

Nothing here but the views is random, and these are drawn by the caller's generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo import features
from dreamvideo.bases.base import VideoBase
from dreamvideo.bundled import bundled, card

__all__ = ["Clip", "direction", "distance", "load", "structure", "views"]

_DEFAULT = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP through which gradients pass."""

    model: Any
    tokenizer: Any
    mean: Tensor
    std: Tensor

    @property
    def side(self) -> int:
        """Pixels of the pictures that it looks at."""
        return self.model.config.vision_config.image_size

    def texts(self, texts: Sequence[str]) -> Tensor:
        """-> unit vectors (N, D)."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = self.model.text_model(input_ids=ids.to(self.mean.device)).pooler_output
        return F.normalize(self.model.text_projection(states), dim=-1)

    def pictures(self, pictures: Tensor) -> Tensor:
        """(N, 3, side, side) in [0, 1] -> unit vectors (N, D)."""
        states = self.model.vision_model(pixel_values=(pictures - self.mean) / self.std).pooler_output
        return F.normalize(self.model.visual_projection(states), dim=-1)

    def tokens(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, blocks, tokens, width): what each block but the last makes of every patch and
        of the class token."""
        small = F.interpolate(pictures, (self.side, self.side), mode="bilinear", antialias=True)
        seen = self.model.vision_model(pixel_values=(small - self.mean) / self.std, output_hidden_states=True)
        return torch.stack(seen.hidden_states[1:-1], dim=1)


def load(base: VideoBase, reference: str | None) -> Clip:
    """CLIP by folder or hub id; by default the one by which the base's videos are measured, or else ViT-B/32.

    Raises:
        MissingWeights: it is not on this machine and cannot be fetched.
    """
    home = bundled().get(base.name)
    own = None if home is None else card(home).encoders.get("clip")
    known = None if home is None or own is None else home / own
    model, tokenizer, preprocessing = features.clip_parts(reference or known or _DEFAULT, device=str(base.device))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(base.device) for v in (preprocessing.mean, preprocessing.std))
    return Clip(model, tokenizer, mean, std)


def distance(pictures: Tensor, texts: Tensor) -> Tensor:
    """The mean of 2 arcsin^2(||x - y|| / 2) over all pairs of unit vectors (N, D) and (M, D)."""
    # At distance 0 the root has no gradient; the clamp keeps it finite.
    chords = (pictures[:, None] - texts[None]).square().sum(dim=-1).clamp(min=1e-12).sqrt()
    return 2 * (chords / 2).clamp(max=1 - 1e-6).arcsin().square().mean()


def direction(after: Tensor, before: Tensor, wanted: Tensor) -> Tensor:
    """1 - cos(after - before, wanted), the mean over unit vectors (N, D); wanted (D,) leads from text to text."""
    return (1 - F.cosine_similarity(after - before, wanted[None], dim=-1)).mean()


def structure(after: Tensor, before: Tensor) -> Tensor:
    """How much the self-similarity of the tokens (N, blocks, T, width) has changed: the mean squared difference of
    cosines."""
    one, other = (F.normalize(tokens, dim=-1) for tokens in (after, before))
    return F.mse_loss(one @ one.transpose(-1, -2), other @ other.transpose(-1, -2))


def views(count: int, side: int, draws: torch.Generator) -> "Views":
    """`count` ways to look at a picture: as it is, and at random, as the official code draws them."""
    plain = torch.eye(3)
    homographies = [plain, *(_homography(draws) for _ in range(count - 1))]
    return Views(side, torch.stack(homographies), torch.stack([_tint(draws) for _ in range(count)]))


@dataclass(frozen=True)
class Views:
    """The same views of any pictures, so that two pictures can be compared in them."""

    side: int
    homographies: Tensor
    """(V, 3, 3), from the view's square [-1, 1]^2 to the picture's."""
    tints: Tensor
    """(V, 3, 4), colours and 1 -> colours."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N V, 3, side, side), black where a view leaves the picture."""
        count, device = len(self.homographies), pictures.device
        # Shrunk first, as far as no view magnifies it: a view takes single pixels of what it looks at.
        finest = math.ceil(self.side / _CROP[0])
        size = [min(length, finest) for length in pictures.shape[-2:]]
        small = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        ticks = (2 * torch.arange(self.side, device=device) + 1) / self.side - 1
        y, x = torch.meshgrid(ticks, ticks, indexing="ij")
        there = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ self.homographies.to(device)[:, None].mT
        grid = (there[..., :2] / there[..., 2:]).repeat(len(pictures), 1, 1, 1)
        seen = F.grid_sample(small.repeat_interleave(count, dim=0), grid, align_corners=False)
        tints = self.tints.to(device).repeat(len(pictures), 1, 1)
        return (torch.einsum("ncd,ndhw->nchw", tints[..., :3], seen) + tints[..., 3, None, None]).clamp(0, 1)


_CROP = (0.6, 1.0)
"""Sides of a crop, as a part of the picture's."""
_GREY = (0.299, 0.587, 0.114)
_SHIFTED = 0.1
"""Largest part of the side by which a view is moved, and of the range by which colours change."""
_TURNED = math.radians(15)
_SKEWED = 0.4
"""Largest part of the half side by which the corners come in."""


def _homography(draws: torch.Generator) -> Tensor:
    """Crop, mirror, turn and shift, perspective, in this order, each of the official code's chance."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draws))

    size = draw(*_CROP)
    left, top = draw(size - 1, 1 - size), draw(size - 1, 1 - size)
    result = torch.tensor([[size, 0, left], [0, size, top], [0, 0, 1]])
    if draw(0, 1) < 0.5:
        result = result @ torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    if draw(0, 1) < 0.8:
        angle, (x, y) = draw(-_TURNED, _TURNED), (draw(-2 * _SHIFTED, 2 * _SHIFTED) for _ in range(2))
        c, s = math.cos(angle), math.sin(angle)
        result = result @ torch.tensor([[c, -s, x], [s, c, y], [0, 0, 1]])
    if draw(0, 1) < 0.5:
        result = result @ _perspective([(draw(0, _SKEWED), draw(0, _SKEWED)) for _ in range(4)])
    return result


def _perspective(inwards: Sequence[tuple[float, float]]) -> Tensor:
    """The homography (3, 3) that takes the corners of [-1, 1]^2, moved in by these parts, to the corners themselves."""
    rows, values = [], []
    for (u, v), (dx, dy) in zip(((-1, -1), (1, -1), (1, 1), (-1, 1)), inwards, strict=True):
        x, y = u * (1 - dx), v * (1 - dy)
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solved = torch.linalg.solve(torch.tensor(rows, dtype=torch.float32), torch.tensor(values, dtype=torch.float32))
    return torch.cat([solved, torch.ones(1)]).view(3, 3)


def _tint(draws: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue, each by up to a tenth, or grey: one affine map (3, 4) of colours."""

    def draw() -> float:
        return float(torch.rand((), generator=draws))

    linear, offset = torch.eye(3), 0.0
    grey = torch.tensor([_GREY]).expand(3, 3)
    if draw() < 0.7:
        bright, contrast, colourful, hue = (2 * draw() - 1 for _ in range(4))
        around = _rotation(2 * math.pi * _SHIFTED * hue)
        saturation = 1 + _SHIFTED * colourful
        linear = (1 + _SHIFTED * bright) * (1 + _SHIFTED * contrast) * around @ torch.lerp(grey, linear, saturation)
        offset = -0.5 * _SHIFTED * contrast
    if draw() < 0.15:
        linear = grey @ linear
    return torch.cat([linear, torch.full((3, 1), offset)], dim=1)


def _rotation(angle: float) -> Tensor:
    """Of colours around the axis of greys, (3, 3)."""
    c, s = math.cos(angle), math.sin(angle) / math.sqrt(3)
    a, b, d = c + (1 - c) / 3, (1 - c) / 3 - s, (1 - c) / 3 + s
    return torch.tensor([[a, b, d], [d, a, b], [b, d, a]])
