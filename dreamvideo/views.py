"""Views of an example: smaller on an empty canvas, a part of it enlarged, mirrored, of how many frames, and said how.

They are made of pixels, not of latents: a part enlarged is then a picture of the size that the base was made for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PROMPT", "View", "random_patches", "random_views"]

FAR = ("a far away ", "very small ")
NEAR = ("zoomed in ", "close up ")
PROMPT = "{prompt}"
"""What stands in `View.words` for the example's prompt."""


@dataclass(frozen=True)
class View:
    """How an example is shown, and what is said of it. The default is the example as it is."""

    scale: float = 1.0
    """The sides of its pictures as a part of the frame's; above 1 the frame cuts out a part of them."""
    place: tuple[float, float] = (0.5, 0.5)
    """Where in the room that is left, or cut off, (top, left) in [0, 1]."""
    flip: bool = False
    words: str = PROMPT
    """What is said."""
    frames: int | None = None
    """Frames to draw from a clip, or of a picture that is repeated. None: the recipe's of a clip, one of a picture."""

    @property
    def look(self) -> "View":
        """Itself without words and frames: views of one look show the same pixels."""
        return View(self.scale, self.place, self.flip)

    def said(self, prompt: str) -> str:
        """`words` about an example of that prompt."""
        return self.words.replace(PROMPT, prompt)

    def show(self, pixels: Tensor) -> Tensor:
        """(1, C, F, H, W) -> the same shape; empty canvas is 0: mid-grey in pixels, nothing in a mask."""
        picture = pixels.flip(-1) if self.flip else pixels
        height, width = pixels.shape[-2:]
        box = self._box(height, width)
        if box is None:
            return picture
        top, left, rows, columns = box
        frames = F.interpolate(picture[0].transpose(0, 1), (rows, columns), mode="bilinear", antialias=True)
        resized = frames.transpose(0, 1)[None]
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


def random_views(
    count: int, generator: torch.Generator, *, flip: float = 0.0, smallest: float = 1 / 3
) -> Sequence[View]:
    """Custom Diffusion's augmentation (official code): in two of three cases a scale in [smallest, 1], else in
    [1.2, 1.4].

    Below 0.6 the picture is pasted somewhere on an empty canvas and called far away or very small; from 0.6 to 1 it is
    shown as it is; above 1 a part is cut out and called zoomed in or close up. `flip` is the chance of a mirror image.
    """

    views = []
    for _ in range(count):
        near = _uniform(generator) >= 2 / 3
        scale = _uniform(generator, 1.2, 1.4) if near else _uniform(generator, smallest, 1.0)
        place, word = (_uniform(generator), _uniform(generator)), int(_uniform(generator) < 0.5)
        flipped = _uniform(generator) < flip
        if near:
            views.append(View(scale, place, flipped, NEAR[word] + PROMPT))
        elif scale < 0.6:
            views.append(View(scale, place, flipped, FAR[word] + PROMPT))
        else:
            views.append(View(flip=flipped))
    return views


def random_patches(count: int, generator: torch.Generator) -> Sequence[View]:
    """Customize-A-Video's patches (supplementary): parts with sides of 0.33 to 0.67 of the frame's, enlarged."""
    return [View(1 / _uniform(generator, 0.33, 0.67), (_uniform(generator), _uniform(generator))) for _ in range(count)]


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
