"""Text2LIVE (Bar-Tal et al. 2022): an edit layer over one layer of a clip, learned from CLIP's judgement alone."""

import json
from collections.abc import Generator as Work
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dreamvideo.bases.base import VideoBase
from dreamvideo.config import plain
from dreamvideo.diffusion import generator
from dreamvideo.edits.atlas import Atlas, AtlasConfig
from dreamvideo.edits.clip import load
from dreamvideo.edits.edit import Edit, Edited, Task, Updates
from dreamvideo.edits.generator import Generator
from dreamvideo.edits.judge import Judge, over, uniform
from dreamvideo.edits.layer import Layer, Which
from dreamvideo.edits.unwrapping import unwrapped
from dreamvideo.errors import Unsupported
from dreamvideo.progress import Progress

__all__ = ["EDITS"]

_FLOOR = 1e-5
"""Of the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Text2Live(Edit):
    """A generator paints colours e and opacity a over one layer of the clip, and CLIP judges what is seen.

    out = s a e + (1 - s a) frame,  green = s a e + (1 - s a) (0, 177, 64) / 255,  s the layer's share of a pixel

    loss = comp (D(out, prompt) + 1 - cos(E(out) - E(in), T(prompt) - T(caption))) + screen D(green, screen text)
           + struct ||S(out) - S(in)||^2 + sparse (l1 mean(a) + l0 mean(2 sigmoid(5 a) - 1))

    D is a spherical distance over views and templates, S the self-similarity of CLIP's tokens. Defaults are the
    official video config's.
    """

    name: ClassVar[str] = "text2live"

    layer: Which = "foreground"
    """What is painted on; when both must change, the one first and the other on the result."""
    screen_text: str | None = None
    """What the edit layer alone shows, such as "a frog". None: the prompt."""
    clip: str | None = None
    """Folder or hub id of a CLIP model. None: the base's own, or else openai/clip-vit-base-patch32."""
    atlas: AtlasConfig = field(default_factory=AtlasConfig)
    texture: Annotated[int, Field(ge=8)] = 2000
    """Pixels of each side of a layer's whole square."""
    scales: Annotated[int, Field(ge=1)] = 7
    """Of the generator."""
    channels: Annotated[int, Field(ge=1)] = 128
    steps: Annotated[int, Field(ge=1)] = 3000
    lr: float = 0.0025
    decay: float = 0.999
    """Of the learning rate, at each step."""
    momentum: float = 0.9
    weight_decay: float = 0.01
    views: Annotated[int, Field(ge=1)] = 6
    """Of every picture, at each step."""
    spacing: int = 2
    """Frames between the three that a step sees."""
    cover: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Smallest part of a side that a step sees; the official config has 0.8 for the background."""
    whole_every: Annotated[int, Field(ge=1)] = 75
    """Steps between two that paint on the whole picture."""
    flip: float = 0.5
    comp: float = 1.0
    screen: float = 1.0
    struct: float = 3.0
    sparse: float = 0.1
    l1: float = 0.01
    l0: float = 0.005
    templates: tuple[str, ...] = (
        "photo of {}.",
        "high quality photo of {}.",
        "a photo of {}.",
        "the photo of {}.",
        "image of {}.",
        "an image of {}.",
        "high quality image of {}.",
        "a high quality image of {}.",
        "the {}.",
        "a {}.",
        "{}.",
        "{}",
        "{}!",
        "{}...",
    )
    screens: tuple[str, ...] = ("{} over a green screen.", "{} in front of a green screen.")
    """Templates for the edit layer alone."""

    def edited(self, base: VideoBase, task: Task, *, seed: int) -> Updates:
        judge = Judge.of(
            load(base, self.clip),
            caption=task.caption,
            prompt=task.prompt,
            screen=self.screen_text or task.prompt,
            templates=self.templates,
            screens=self.screens,
            views=self.views,
        )
        frames = task.frames.to(base.device)
        layers = yield from self._layers(task, frames, seed)
        layer = Layer.of(layers, self.layer, side=self.texture)
        painter = yield from self._learned(layer, frames, judge, seed)
        with torch.no_grad():
            result = over(layer.shown(painter(layer.picture)), frames)
        error = (layers.painted() - frames).square().mean()
        return Edited(frames=result, measured={"atlas_psnr": round(-10 * error.log10().item(), 2)})

    def _layers(self, task: Task, frames: Tensor, seed: int) -> Work[Progress, None, Atlas]:
        """The clip's layers, learned now or kept from before."""
        parts = [part.cpu().numpy().tobytes() for part in (task.frames, task.masks) if part is not None]
        settings = json.dumps([plain(self.atlas), seed, *task.frames.shape]).encode()
        digest = sha256(b"".join([settings, *parts])).hexdigest()[:16]
        masks = None if task.masks is None else task.masks.to(frames)
        file = None if task.keep is None else task.keep / f"atlas-{digest}.safetensors"
        return (yield from unwrapped(frames, masks, self.atlas, seed=seed, file=file))

    def _learned(self, layer: Layer, frames: Tensor, judge: Judge, seed: int) -> Work[Progress, None, Generator]:
        """The generator, trained on the layer's picture and, beside it, on frames."""
        try:
            from madgrad import MADGRAD
        except ImportError as error:
            raise Unsupported(
                "text2live needs an optimizer that is not installed: pip install dreamvideo[edit]"
            ) from error
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            painter = Generator(scales=self.scales, channels=self.channels).to(frames.device)
        optimizer = MADGRAD(painter.parameters(), self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        for step in range(1, self.steps + 1):
            draws = generator(seed, "edit", step)
            optimizer.param_groups[0]["lr"] = max(_FLOOR, self.lr * self.decay ** (step - 1))
            loss = self._loss(painter, layer, frames, judge, draws, whole=step % self.whole_every == 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield Progress("edit", step, self.steps, loss.item())
        return painter

    def _loss(
        self, painter: Generator, layer: Layer, frames: Tensor, judge: Judge, draws: torch.Generator, *, whole: bool
    ) -> Tensor:
        """Of three frames with the edit painted on the layer's picture, and of the middle one painted on itself."""
        count, *sides = len(frames), *frames.shape[-2:]
        part = 1.0 if whole else self.cover + (1 - self.cover) * uniform(draws)
        height, width = (max(1, round(side * part)) for side in sides)
        top, left = (
            int(uniform(draws) * (side - shown + 1)) for side, shown in zip(sides, (height, width), strict=True)
        )
        middle = int(uniform(draws) * count)
        near = [min(max(middle + step, 0), count - 1) for step in (-self.spacing, 0, self.spacing)]
        seen = layer.cut(near, top, left, height, width, crop=not whole)
        around = frames[near, :, top : top + height, left : left + width]
        mirror = [-1] if uniform(draws) < self.flip else []
        painted = painter(seen.picture.flip(mirror)).flip(mirror)
        direct = painter(around[1:2].flip(mirror)).flip(mirror)
        alone = torch.cat([direct[:, :3], seen.share[1:2] * direct[:, 3:]], dim=1)
        shown = torch.cat([seen.shown(painted), alone])
        opacities = torch.cat([painted[:, 3:].flatten(), direct[:, 3:].flatten()])
        sparse = self.l1 * opacities.mean() + self.l0 * (2 * (5 * opacities).sigmoid() - 1).mean()
        comp, screen, struct = judge(shown, torch.cat([around, around[1:2]]), draws)
        return self.comp * comp + self.screen * screen + self.struct * struct + self.sparse * sparse


EDITS = (Text2Live,)
