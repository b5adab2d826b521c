"""What a base is made of, and what it says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["DTYPES", "Defaults", "Origin", "Parts", "fingerprint"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name in options -> what the frozen weights are, and compute in."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a base comes from."""

    name: str
    """For people: the hub id, or the folder's name."""
    reference: str
    """What it can be loaded by again."""
    image_encoder: str | None = None
    """Likewise, of the image encoder that was named beside it."""
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a base was made for."""

    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: int
    guidance: float = 9.0
    steps: int = 50
    """Denoising steps."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The frozen parts of a base: stock objects of diffusers and transformers."""

    denoiser: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: Any
    scheduler: Any
    """A diffusers scheduler; its config says the noise process."""
    image_encoder: nn.Module | None = None
    """CLIP vision model with projection, for appearance guidance."""

    @property
    def stock(self) -> dict[str, Any]:
        """What stock pipelines take, by the names that they give it."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.denoiser,
            "scheduler": self.scheduler,
        }

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those of the parts that have weights."""
        modules = (self.denoiser, self.vae, self.text_encoder, self.image_encoder)
        return tuple(module for module in modules if module is not None)

    @property
    def factor(self) -> int:
        """Pixels to a latent, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def save(self, folder: Path) -> None:
        """Write each part into its own folder, as diffusers lays them out."""
        places = {**self.stock, "image_encoder": self.image_encoder}
        for name, part in places.items():
            if part is not None:
                part.save_pretrained(folder / name)


def fingerprint(model: nn.Module) -> tuple[float, ...]:
    """One weight from each of 16 tensors spread over a model: another model has others, whatever its name."""
    tensors = [tensor.detach() for tensor in model.parameters() if tensor.ndim > 1 and not tensor.is_meta]
    return tuple(float(tensor.flatten()[tensor.numel() // 2]) for tensor in tensors[:: max(1, len(tensors) // 16)][:16])
