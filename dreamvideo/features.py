"""What metrics compare: unit vectors of pictures and of texts, from frozen encoders."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel, CLIPModel, CLIPTokenizer

__all__ = ["Images", "Preprocessing", "Texts", "clip", "dino"]

_SLICE = 32
"""Pictures that pass an encoder at once."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, cut out the middle, normalise: as the encoder's makers prepared pictures."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def read(cls, folder: str | Path) -> "Preprocessing":
        """From `preprocessor_config.json`, in the form that transformers gives it."""
        says = json.loads((Path(folder) / "preprocessor_config.json").read_text(encoding="utf-8"))
        resize, crop = says["size"]["shortest_edge"], says["crop_size"]["height"]
        return cls(resize, crop, tuple(says["image_mean"]), tuple(says["image_std"]))

    def __call__(self, frames: Sequence[np.ndarray]) -> Tensor:
        """N pictures, each uint8 (H, W, 3) -> (N, 3, crop, crop), float32."""
        prepared = torch.stack([torch.from_numpy(self._cut(frame)) for frame in frames]).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (prepared - mean) / std

    def _cut(self, frame: np.ndarray) -> np.ndarray:
        image = Image.fromarray(frame)
        scale = self.resize / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.crop) // 2, (height - self.crop) // 2
        return np.array(image.crop((left, top, left + self.crop, top + self.crop)))


@dataclass(frozen=True)
class Images:
    """An image encoder: `name` says which."""

    name: str
    preprocessing: Preprocessing
    model: Any
    """Prepared pictures (N, 3, S, S) -> vectors (N, D)."""

    @torch.no_grad()
    def __call__(self, frames: Sequence[np.ndarray]) -> Tensor:
        """N pictures, each uint8 (H, W, 3) -> unit vectors (N, D)."""
        parts = self.preprocessing(frames).split(_SLICE)
        return F.normalize(torch.cat([self.model(part).float() for part in parts]), dim=-1)


@dataclass(frozen=True)
class Texts:
    """A text encoder that speaks of the same things as an image encoder."""

    tokenizer: Any
    model: Any
    """Token ids (N, L) -> vectors (N, D)."""

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """-> unit vectors (N, D)."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return F.normalize(self.model(ids).float(), dim=-1)


def clip(folder: str | Path) -> tuple[Images, Texts]:
    """CLIP's two encoders, from a folder in transformers' layout."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)

    def look(pixels: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    def read(ids: Tensor) -> Tensor:
        return model.text_projection(model.text_model(input_ids=ids).pooler_output)

    images = Images(Path(folder).name, Preprocessing.read(folder), look)
    return images, Texts(CLIPTokenizer.from_pretrained(folder), read)


def dino(folder: str | Path) -> Images:
    """A self-supervised encoder (DINO, DINOv2): its class token, from a folder in transformers' layout."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    return Images(
        Path(folder).name, Preprocessing.read(folder), lambda pixels: model(pixel_values=pixels).last_hidden_state[:, 0]
    )
