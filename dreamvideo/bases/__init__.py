"""Base models: one file per family, found by lying here."""

import importlib
import json
import pkgutil
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from dreamvideo.bases.base import DTYPES, Defaults, Origin, VideoBase
from dreamvideo.bundled import bundled, card
from dreamvideo.config import build
from dreamvideo.errors import BadInput, MissingWeights, Unsupported

__all__ = ["available", "load"]

_FILES = ("*.json", "*.txt", "*.safetensors")


def available() -> dict[str, type[VideoBase]]:
    """Family name -> class, from every module of this package that states a FAMILY."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    families = [vars(module)["FAMILY"] for module in modules if "FAMILY" in vars(module)]
    return {family.family: family for family in families}


def load(reference: str, *, dtype: str = "auto", device: str = "cpu", image_encoder: str | None = None) -> VideoBase:
    """A base by bundled name, folder in diffusers' layout, or hub id.

    Args:
        reference: `emojiworld` or another bundled base, `tiny`, a folder, or `owner/name`.
        dtype: `fp32`, `bf16`, `fp16`, or `auto`: fp32 on a CPU, else bf16.
        device: where its parts go.
        image_encoder: folder or hub id of a CLIP vision model with projection, for appearance guidance.

    Raises:
        BadInput: nothing of that name, or a folder of another layout.
        MissingWeights: a hub id that is not on this machine and cannot be fetched.
    """
    for family in available().values():
        if reference == family.tiny_name:
            return family.tiny(0).to(device)
    if dtype not in (*DTYPES, "auto"):
        raise BadInput(f"--dtype {dtype}: one of auto, {', '.join(DTYPES)}")
    if dtype == "fp16" and device == "cpu":
        raise BadInput("--dtype fp16: a CPU cannot compute in it; use fp32 or bf16")
    chosen = DTYPES.get(dtype) or (torch.float32 if device == "cpu" else torch.bfloat16)
    folder = _folder(reference)
    config = folder / "unet" / "config.json"
    if not config.is_file():
        raise BadInput(f"{reference}: no unet/config.json in it; a base is a folder in diffusers' layout")
    denoiser = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    for family in available().values():
        if family.denoiser_class == denoiser:
            local, says = reference not in bundled() and Path(reference).is_dir(), card(folder)
            origin = Origin(
                name=folder.resolve().name if local else reference,
                reference=str(folder.resolve()) if local else reference,
                image_encoder=image_encoder,
                licence=family.names.get(reference, says.licence),
            )
            vision = None if image_encoder is None else str(_folder(image_encoder))
            base = family.load(str(folder), origin=origin, dtype=chosen, device=device, image_encoder=vision)
            base.defaults = build(Defaults, {**asdict(base.defaults), **says.defaults}, where=f"{folder}/card.toml")
            return base
    known = ", ".join(family.denoiser_class for family in available().values())
    raise Unsupported(f"{reference}: its denoiser is a {denoiser}; bases are read around {known}")


def _folder(reference: str) -> Path:
    """The folder of a base: the bundled one, the given one, or the hub's cache."""
    if reference in bundled():
        return bundled()[reference]
    if Path(reference).is_dir():
        return Path(reference)
    if reference.count("/") != 1 or reference.startswith((".", "/", "~")):
        raise BadInput(f"base {reference}: neither a folder nor a known name; `dreamvideo bases` lists the names")
    try:
        return Path(snapshot_download(reference, allow_patterns=_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # Not in the cache: fetch it.
    try:
        return Path(snapshot_download(reference, allow_patterns=_FILES, etag_timeout=5))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise MissingWeights(
            f"{reference} is not on this machine and cannot be fetched: copy its folder (model_index.json, scheduler, "
            f"text_encoder, tokenizer, unet, vae; *.json, *.txt, *.safetensors) here and give its path"
        ) from error
