"""Base models: one file per family, found by lying here."""

import importlib
import json
import pkgutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from dreamvideo.adapters.storage import FORMATS
from dreamvideo.bases.base import DTYPES, Defaults, Origin, VideoBase
from dreamvideo.bundled import bundled, card
from dreamvideo.config import build
from dreamvideo.errors import BadInput, Unsupported
from dreamvideo.hub import fetched

__all__ = ["available", "load"]

# Of the hub's files; checkpoints that lie beside the folders of a whole pipeline hold the same weights once more.
_FILES = (
    "*.json",
    "*.txt",
    "*/*.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.ckpt",
)


def available() -> dict[str, type[VideoBase]]:
    """Family name -> class, from every module of this package that states a FAMILY."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    families = [vars(module)["FAMILY"] for module in modules if "FAMILY" in vars(module)]
    return {family.family: family for family in families}


def load(reference: str, *, dtype: str = "auto", device: str = "cpu", image_encoder: str | None = None) -> VideoBase:
    """A base by bundled name, folder in diffusers' layout, or hub id.

    Args:
        reference: `emojiworld` or another bundled base, `tiny`, a folder, or `owner/name`. Two of these joined by a +
            are one base in two places: Stable Diffusion and the motion modules that are put into it, or a model with
            VideoCrafter2's text encoder and the folder of its checkpoint.
        dtype: `fp32`, `bf16`, `fp16`, or `auto`: fp32 on a CPU, else bf16. `int8` and `fp8` compute as `auto` does and
            keep the weights of the denoiser's blocks in 8 bits, which approximates them.
        device: where its parts go.
        image_encoder: folder or hub id of a CLIP vision model with projection, for appearance guidance.

    Raises:
        BadInput: nothing of that name, a folder of another layout, or two that do not belong together.
        MissingWeights: a hub id that is not on this machine and cannot be fetched.
    """
    if dtype not in (*DTYPES, *FORMATS, "auto"):
        raise BadInput(f"--dtype {dtype}: one of auto, {', '.join((*DTYPES, *FORMATS))}")
    if dtype == "fp16" and device == "cpu":
        raise BadInput("--dtype fp16: a CPU cannot compute in it; use fp32 or bf16")
    if dtype == "fp8" and device.startswith("mps"):
        raise BadInput("--dtype fp8: torch cannot keep it on Apple's GPUs; use int8")
    tiny = {family.tiny_name: family for family in available().values()}
    computing = DTYPES.get(dtype) or (torch.float32 if device == "cpu" else torch.bfloat16)
    if reference in tiny:
        base = tiny[reference].tiny(0)
        for part in base.parts.modules:
            nn.Module.to(part, computing)  # diffusers' own warns, whatever there is to warn of
    else:
        # What is stored in 8 bits goes to the device in 8 bits: it may have no room for more.
        place = "cpu" if dtype in FORMATS else device
        base = _read(reference, dtype=computing, device=place, image_encoder=image_encoder)
    if dtype in FORMATS:
        base.store(dtype)
    return base.to(device)


def _read(reference: str, *, dtype: torch.dtype, device: str, image_encoder: str | None) -> VideoBase:
    """The base that lies in a folder, or in two."""
    places = _places(reference)
    folder, addition = _folder(places[0]), _folder(places[1]) if len(places) == 2 else None
    family, says = _family(reference, folder, addition), card(folder)
    names = [Path(place).resolve().name if _local(place) else place for place in places]
    references = [str(Path(place).resolve()) if _local(place) else place for place in places]
    origin = Origin(
        name="+".join(names),
        reference="+".join(references),
        image_encoder=image_encoder,
        licence=family.names.get(reference, says.licence),
    )
    base = family.load(
        str(folder),
        addition=None if addition is None else str(addition),
        origin=origin,
        dtype=dtype,
        device=device,
        image_encoder=None if image_encoder is None else str(_folder(image_encoder)),
    )
    base.defaults = build(Defaults, {**asdict(base.defaults), **says.defaults}, where=f"{folder}/card.toml")
    return base


def _local(reference: str) -> bool:
    return reference not in bundled() and Path(reference).is_dir()


def _places(reference: str) -> list[str]:
    """`A+B` -> A and B; a folder may have a + in its name."""
    if "+" not in reference or Path(reference).is_dir():
        return [reference]
    # The split that finds two folders, where names have a + as well; else the only one that there is.
    parts = reference.split("+")
    splits = [["+".join(parts[:at]), "+".join(parts[at:])] for at in range(1, len(parts))]
    found = [split for split in splits if all(Path(place).is_dir() for place in split)]
    if not found and len(splits) > 1:
        raise BadInput(f"base {reference}: give two folders or hub ids with one + between them")
    return (found or splits)[0]


def _family(reference: str, folder: Path, addition: Path | None) -> type[VideoBase]:
    """Who reads a folder, by its denoiser's class, or a folder and an addition, by what the addition is."""
    additions = {family.addition: family for family in available().values() if family.addition is not None}
    denoisers = {family.denoiser_class: family for family in available().values()}
    config = folder / "unet" / "config.json"
    if not config.is_file():
        if addition is None and _addition(folder, additions) in additions:
            raise BadInput(f"{reference}: only half of a base; write MODEL+{reference}, MODEL being what it goes into")
        raise BadInput(f"{reference}: no unet/config.json in {folder}; a base is a folder in diffusers' layout")
    if addition is None:
        known, wanted, what = denoisers, _class_name(config), "its denoiser"
    else:
        known, wanted, what = additions, _addition(addition, additions), "what stands behind the +"
        if wanted is None:
            raise BadInput(f"{reference}: in {addition} lies nothing that may stand behind a + ({', '.join(known)})")
    if wanted not in known:
        raise Unsupported(f"{reference}: {what} is a {wanted}; bases are read around {', '.join(known)}")
    return known[wanted]


def _addition(folder: Path, known: Collection[str]) -> str | None:
    """What lies in a folder: one of the known checkpoints, or a model by its class."""
    config = folder / "config.json"
    found = [name for name in known if (folder / name).is_file()]
    return found[0] if found else _class_name(config) if config.is_file() else None


def _class_name(config: Path) -> str | None:
    return json.loads(config.read_text(encoding="utf-8")).get("_class_name")


def _folder(reference: str) -> Path:
    """The folder of a base: the bundled one, the given one, or the hub's cache."""
    if reference in bundled():
        return bundled()[reference]
    if Path(reference).is_dir():
        return Path(reference)
    if reference.count("/") != 1 or reference.startswith((".", "/", "~")):
        raise BadInput(f"base {reference}: neither a folder nor a known name; `dreamvideo bases` lists the names")
    advice = (
        "copy its folder (model_index.json, scheduler, text_encoder, tokenizer, unet, vae; *.json, *.txt, "
        "*.safetensors) here and give its path"
    )
    return fetched(reference, _FILES, advice=advice)
