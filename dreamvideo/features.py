"""What metrics compare: unit vectors of pictures and of texts, from frozen encoders."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel, CLIPModel, CLIPTokenizer

from dreamvideo.errors import BadInput
from dreamvideo.hub import fetched

__all__ = ["Images", "Preprocessing", "Texts", "clip", "clip_parts", "dino"]

_SLICE = 32
"""Pictures that pass an encoder at once."""
_FILES = ("*.json", "*.txt", "model.safetensors", "pytorch_model.bin")
_SELF_SUPERVISED = ("dinov2", "vit")
"""How transformers calls what DINO and DINOv2 are."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, cut out the middle, normalise: as the encoder's makers prepared pictures."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def read(cls, folder: Path, original: "Preprocessing") -> "Preprocessing":
        """What `preprocessor_config.json` says; `original` where it does not say what is cut out.

        The hub's DINO has such a file: it stretches to a square what DINO's makers cut.
        """
        file = folder / "preprocessor_config.json"
        says = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if "crop_size" not in says:
            return original
        resize, crop = says["size"], says["crop_size"]
        # OpenAI's own files are from before there were names in a size.
        resize = resize["shortest_edge"] if isinstance(resize, dict) else resize
        crop = crop["height"] if isinstance(crop, dict) else crop
        return cls(resize, crop, tuple(says["image_mean"]), tuple(says["image_std"]))

    def __call__(self, pictures: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """uint8 pictures (H, W, 3) of any sizes -> (N, 3, crop, crop), float32."""
        prepared = torch.stack([torch.from_numpy(self._cut(one)) for one in pictures]).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (prepared - mean) / std

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        # To the pixel as torchvision's Resize and CenterCrop: the longer side is cut off, the middle rounded.
        image = Image.fromarray(picture)
        width, height = (self.resize * side // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return np.array(image.crop((left, top, left + self.crop, top + self.crop)))


_CLIP = Preprocessing(224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_DINO = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Images:
    """An image encoder."""

    name: str
    """Its hub id, or the name of its folder."""
    preprocessing: Preprocessing
    model: Any
    """Prepared pictures (N, 3, S, S) -> vectors (N, D)."""
    device: str = "cpu"

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number that is made with this says of it."""
        return {"encoder": self.name, "preprocessing": {"resample": "bicubic", **asdict(self.preprocessing)}}

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """uint8 pictures (H, W, 3) of any sizes -> unit vectors (N, D)."""
        parts = self.preprocessing(pictures).split(_SLICE)
        return F.normalize(torch.cat([self.model(part.to(self.device)).float().cpu() for part in parts]), dim=-1)


@dataclass(frozen=True)
class Texts:
    """A text encoder that speaks of the same things as an image encoder."""

    tokenizer: Any
    model: Any
    """Token ids (N, L) -> vectors (N, D)."""
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """-> unit vectors (N, D)."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return F.normalize(self.model(ids.to(self.device)).float().cpu(), dim=-1)


def clip_parts(reference: str | Path, *, device: str = "cpu") -> tuple[Any, Any, Preprocessing]:
    """CLIP's model, frozen, its tokenizer and its preprocessing, from a folder in transformers' layout or by hub id.

    Raises:
        BadInput: what lies there is no CLIP.
        MissingWeights: a hub id that is not on this machine and cannot be fetched.
    """
    folder = _folder(reference, ("clip",), what="CLIP")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False).to(device)
    return model, CLIPTokenizer.from_pretrained(folder), Preprocessing.read(folder, _CLIP)


def clip(reference: str | Path, *, device: str = "cpu") -> tuple[Images, Texts]:
    """CLIP's two encoders; `openai/clip-vit-base-patch32` is the papers'. Raises as `clip_parts`."""
    model, tokenizer, preprocessing = clip_parts(reference, device=device)

    def look(pixels: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    def read(ids: Tensor) -> Tensor:
        return model.text_projection(model.text_model(input_ids=ids).pooler_output)

    return Images(_name(reference), preprocessing, look, device), Texts(tokenizer, read, device)


def dino(reference: str | Path, *, device: str = "cpu") -> Images:
    """A self-supervised encoder (DINO, DINOv2): its class token, from a folder in transformers' layout or by hub id;
    `facebook/dino-vits16` is the papers'.

    Raises:
        BadInput: what lies there is no such encoder.
        MissingWeights: a hub id that is not on this machine and cannot be fetched.
    """
    folder = _folder(reference, _SELF_SUPERVISED, what="DINO")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False).to(device)

    def look(pixels: Tensor) -> Tensor:
        return model(pixel_values=pixels).last_hidden_state[:, 0]

    return Images(_name(reference), Preprocessing.read(folder, _DINO), look, device)


def _folder(reference: str | Path, kinds: Sequence[str], *, what: str) -> Path:
    """The folder of an encoder that transformers calls one of `kinds`."""
    folder = Path(reference)
    if not folder.is_dir():
        folder = fetched(str(reference), _FILES, advice="copy its folder here and give its path")
    config = folder / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind not in kinds:
        raise BadInput(f"{reference}: no {what} in transformers' layout (config.json says {kind})")
    return folder


def _name(reference: str | Path) -> str:
    return Path(reference).resolve().name if Path(reference).is_dir() else str(reference)
