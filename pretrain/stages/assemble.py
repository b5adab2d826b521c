"""Finished bases in diffusers' layout and half precision, from what the stages left."""

import copy
import json
from pathlib import Path
from typing import Any

import tomli_w
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from models import make_scheduler
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection, Dinov2Model

from dreamvideo.files import whole, write_json, write_text
from stages.encoders import CLIP, DINO
from stages.stage import Setup

__all__ = ["assemble"]

_SHARD = "16MB"
_SUMMARY = {
    "emojiworld": "EmojiWorld: emoji that move about in painted places, as video.",
    "emojiworld-image": "EmojiWorld: emoji in painted places, as pictures.",
    "emojiworld-animatediff": "EmojiWorld: its image model with a motion module.",
}
_ENCODERS = {"clip": "../emojiworld-clip", "dino": "../emojiworld-dino"}
# Few steps: the base is met first on CPUs.
_SAMPLING = {"guidance": 5.0, "steps": 15}
_NO_CHECKS = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_BASES: dict[str, tuple[str, type, type, dict[str, Any]]] = {
    "emojiworld": ("video", UNet3DConditionModel, TextToVideoSDPipeline, {}),
    "emojiworld-image": ("image", UNet2DConditionModel, StableDiffusionPipeline, _NO_CHECKS),
    "emojiworld-animatediff": ("motion", UNetMotionModel, AnimateDiffPipeline, {"motion_adapter": None}),
}


def assemble(setup: Setup) -> dict[str, float]:
    """Write each base whose denoiser is made, and the two encoders, into `final/`; tell their sizes in MB."""
    final, clip = setup.out / "final", CLIPModel.from_pretrained(setup.made("clip"))
    shared = {
        "vae": AutoencoderKL.from_pretrained(setup.made("vae")),
        "text_encoder": _part(CLIPTextModel(clip.config.text_config), clip.text_model),
        "tokenizer": CLIPTokenizer.from_pretrained(setup.made("clip")),
        "scheduler": make_scheduler(),
    }
    image_encoder = CLIPVisionModelWithProjection(clip.config.vision_config)
    _part(image_encoder.vision_model, clip.vision_model)
    _part(image_encoder.visual_projection, clip.visual_projection)
    folders = {}
    for name, (stage, denoiser, pipeline, options) in _BASES.items():
        if not (setup.out / stage).is_dir():
            continue
        parts = {**shared, "unet": denoiser.from_pretrained(setup.out / stage)}
        with whole(final / name) as folder:
            for place, part in {**parts, "image_encoder": image_encoder}.items():
                _save(part, folder / place)
            pipeline(**parts, **options).save_config(folder)
            defaults = {"frames": setup.preset.frames, "fps": 8, **_SAMPLING}
            card = {"summary": _SUMMARY[name], "licence": "MIT", "defaults": defaults, "encoders": _ENCODERS}
            write_text(folder / "card.toml", tomli_w.dumps(card))
        folders[name] = final / name
    dino = Dinov2Model.from_pretrained(setup.made("dino")) if (setup.out / "dino").is_dir() else None
    judges = {"emojiworld-clip": (CLIP, [clip, shared["tokenizer"]]), "emojiworld-dino": (DINO, [dino] if dino else [])}
    for name, ((mean, std), parts) in judges.items():
        with whole(final / name) as folder:
            for part in parts:
                _save(part, folder)
            size = setup.preset.size
            crop = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
            write_json(folder / "preprocessor_config.json", {**crop, "image_mean": mean, "image_std": std})
            folders[name] = final / name
    return {name: _megabytes(folder) for name, folder in folders.items()}


def _part(new: torch.nn.Module, old: torch.nn.Module) -> torch.nn.Module:
    new.load_state_dict(old.state_dict())
    return new


def _save(part: Any, folder: Path) -> None:
    if isinstance(part, torch.nn.Module):
        copy.deepcopy(part).half().save_pretrained(folder, max_shard_size=_SHARD)
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        about.pop("_name_or_path", None)  # where it lay while it was made
        write_json(folder / "config.json", about)
    else:
        part.save_pretrained(folder)


def _megabytes(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)
