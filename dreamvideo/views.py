"""Views of one picture: smaller on an empty canvas, larger and cropped, mirrored, each with words that say so."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["View", "random_views"]

FAR = ("a far away ", "very small ")
NEAR = ("zoomed in ", "close up ")


@dataclass(frozen=True)
class View:
    """How a picture is shown. The default is the picture as it is."""

    scale: float = 1.0
    """Its sides as a part of the frame's; above 1 the frame cuts out a part of it."""
    place: tuple[float, float] = (0.5, 0.5)
    """Where in the room that is left, or cut off, (top, left) in [0, 1]."""
    flip: bool = False
    prefix: str = ""
    """Before the prompt."""

    def show(self, pixels: Tensor) -> Tensor:
        """(1, 3, 1, H, W) in [-1, 1] -> the same shape; empty canvas is 0, mid-grey. Masks (1, 1, 1, h, w) likewise."""
        picture = pixels.flip(-1) if self.flip else pixels
        height, width = pixels.shape[-2:]
        box = self._box(height, width)
        if box is None:
            return picture
        top, left, rows, columns = box
        resized = F.interpolate(picture[:, :, 0], (rows, columns), mode="bilinear", antialias=True)[:, :, None]
        if self.scale > 1:
            return resized[..., -top : height - top, -left : width - left]
        shown = torch.zeros_like(pixels)
        shown[..., top : top + rows, left : left + columns] = resized
        return shown

    def seen(self, height: int, width: int, *, pixels: int) -> Tensor | None:
        """(1, 1, h, w) in {0, 1}: the latents that are picture and not canvas, less one row on each side, for a frame
        of height x width latents of `pixels` x `pixels`. None: all of them."""
        box = self._box(height * pixels, width * pixels)
        if box is None or self.scale > 1:
            return None
        top, left, rows, columns = box
        mask = torch.zeros(1, 1, height, width)
        above, before = top // pixels + 1, left // pixels + 1
        below, behind = (top + rows) // pixels - 1, (left + columns) // pixels - 1
        mask[..., above : max(above, below), before : max(before, behind)] = 1
        return mask

    def _box(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(top, left, rows, columns) of the resized picture in the frame, in pixels; None where it is the frame."""
        rows, columns = round(height * self.scale), round(width * self.scale)
        if (rows, columns) == (height, width):
            return None
        top, left = round((height - rows) * self.place[0]), round((width - columns) * self.place[1])
        return top, left, rows, columns


def random_views(count: int, generator: torch.Generator, *, flip: float = 0.0) -> Sequence[View]:
    """Custom Diffusion's augmentation (official code): in two of three cases a scale in [1/3, 1], else in [1.2, 1.4].

    Below 0.6 the picture is pasted somewhere on an empty canvas and called far away or very small; from 0.6 to 1 it is
    shown as it is; above 1 a part is cut out and called zoomed in or close up. `flip` is the chance of a mirror image.
    """

    def draw() -> float:
        return float(torch.rand((), generator=generator))

    views = []
    for _ in range(count):
        near = draw() >= 2 / 3
        scale = 1.2 + 0.2 * draw() if near else 1 / 3 + 2 / 3 * draw()
        place, word, flipped = (draw(), draw()), int(draw() < 0.5), draw() < flip
        if near:
            views.append(View(scale, place, flipped, NEAR[word]))
        elif scale < 0.6:
            views.append(View(scale, place, flipped, FAR[word]))
        else:
            views.append(View(flip=flipped))
    return views
