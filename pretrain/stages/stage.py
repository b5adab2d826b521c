"""What a stage is asked, and what all are given."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from models import Learning, Preset
from PIL import Image, ImageDraw
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from world import NARROW, Clips, World

from dreamvideo.diffusion import generator
from dreamvideo.errors import BadInput

__all__ = ["Setup", "Stage", "mixed", "sheet"]


@dataclass(frozen=True)
class Setup:
    """Where, on what and how large."""

    out: Path
    preset: Preset
    sprites: Path
    device: torch.device
    half: bool = False
    """Compute in bfloat16; weights stay float32."""
    seed: int = 0

    def world(self, *, narrow: bool = False, subjects: Sequence[str] | None = None) -> World:
        """The world with all training subjects, the short list of them, or those named."""
        chosen = NARROW if narrow else subjects
        return World(self.sprites, size=self.preset.size, device=self.device, subjects=chosen)

    def strangers(self) -> World:
        """The world with the subjects that no stage sees."""
        with safe_open(self.sprites, "pt") as file:
            rows = json.loads(file.metadata()["world"])["subjects"]
        return self.world(subjects=[row["name"] for row in rows if row["split"] == "held_out"])

    def random(self, *names: str | int) -> torch.Generator:
        """A generator on the CPU, which gives the same world on every device."""
        return generator(self.seed, *names)

    def noise(self, *names: str | int) -> torch.Generator:
        """A generator on the device."""
        seed = self.random(*names).initial_seed()
        return torch.Generator(self.device).manual_seed(seed)

    def made(self, stage: str) -> Path:
        """The folder that an earlier stage wrote.

        Raises:
            BadInput: it has not.
        """
        folder = self.out / stage
        if not folder.is_dir():
            raise BadInput(f"{folder} is not there: run stage {stage} first")
        return folder

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """bfloat16 where asked; on a CPU also the attention that is quicker for few tokens."""
        backends = list(SDPBackend.__members__.values()) if self.device.type != "cpu" else [SDPBackend.MATH]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half), sdpa_kernel(backends):
            yield


class Stage(ABC):
    """One thing to learn.

    Questions: `make`: what is learned, when nothing is yet? `terms`: what is the loss of step n? `judge`: how good is
    it? `write`: what remains? `preview`: what does it look like?
    """

    name: ClassVar[str]
    averaged: ClassVar[bool] = False
    """Is the result the running mean of the weights?"""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @cached_property
    def how(self) -> Learning:
        return self.setup.preset.learning[self.name]

    @abstractmethod
    def make(self) -> nn.Module:
        """A new model; what of it requires a gradient is learned."""

    @abstractmethod
    def terms(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        """The terms whose sum is the loss, all randomness drawn from the step's number."""

    @abstractmethod
    def judge(self, model: nn.Module) -> dict[str, float]:
        """Numbers from renderings that no step sees."""

    @abstractmethod
    def write(self, model: nn.Module, folder: Path) -> None:
        """Write what the next stages read."""

    def preview(self, model: nn.Module) -> Image.Image | None:
        """A contact sheet."""
        return None

    def samples(self, step: int) -> int:
        """Examples in a step's batch."""
        return self.how.batch


def mixed(world: World, n: int, random: torch.Generator) -> list[Clips]:
    """`n` single frames: half from pictures, half from clips at a random time."""
    return [world.images(n - n // 2, random), world.clips(n // 2, 1, random)]


def sheet(pixels: Tensor, captions: Sequence[str], *, columns: int = 1, tile: int = 96) -> Image.Image:
    """Clips (B, 3, F, H, W) in [-1, 1], each a row of frames over its caption, in so many columns."""
    count, _, frames, *_ = pixels.shape
    rows = -(-count // columns)
    page = Image.new("RGB", (columns * (frames * tile + 8), rows * (tile + 14)), "white")
    pen = ImageDraw.Draw(page)
    for number, (clip, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = number % columns * (frames * tile + 8), number // columns * (tile + 14)
        strip = ((clip.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(2, 1, 3, 0).flatten(1, 2)
        image = Image.fromarray(strip.numpy()).resize((frames * tile, tile), Image.Resampling.NEAREST)
        page.paste(image, (left, top))
        pen.text((left, top + tile), caption[: frames * tile // 6], fill="black")
    return page
