"""What a file of weights holds, said without loading it into a model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from dreamvideo.adapters.file import HEADER, read_meta
from dreamvideo.errors import BadFile
from dreamvideo.official.adapters import by_set, plan
from dreamvideo.official.checkpoint import naming, read_data, tensors_of
from dreamvideo.official.lora import lora_layout
from dreamvideo.official.names import Layout, adapter_layers, renamed
from dreamvideo.official.unet import unet_config
from dreamvideo.official.words import named_vectors

__all__ = ["describe"]

LAYOUTS = tuple(Layout(layers, (True,) * 8) for layers in (2, 1, 3))
"""What adapter names are tried against; a file of adapters does not say its layout."""


def describe(path: str | Path) -> dict[str, Any]:
    """What a `.pth`, `.pt`, `.bin` or `.safetensors` file holds.

    Always `file`, `format`, and the numbers `tensors` and `parameters`; beside these, what the format knows.
    `format` is one of "official UNet", "official identity adapter", "official motion adapter", "official identity
    and motion adapter", "LoRA (diffusers)", "LoRA (PEFT)", "LoRA (kohya)", "LoRA (AnimateDiff)", "official word",
    "textual inversion (AUTOMATIC1111)", "textual inversion (diffusers)", "dreamvideo concept" and "unknown tensors".

    Raises:
        BadFile: unreadable, or a pickle that holds code.
    """
    data = read_data(path)
    found = list(_tensors(data))
    counted = {"tensors": len(found), "parameters": sum(tensor.numel() for tensor in found)}
    if _is_concept(Path(path)):
        return {"file": str(path), **_concept(Path(path)), **counted}
    with naming(path):
        return {"file": str(path), **_recognised(data), **counted}


def _recognised(data: Any) -> dict[str, Any]:
    """`format`, and what it knows."""
    try:
        return _word(data)
    except BadFile:
        pass  # Not a word; that is an answer here, and the next question follows.
    try:
        tensors, step = tensors_of(data)
    except BadFile:
        return {"format": "unknown tensors"}
    if "input_blocks.0.0.weight" in tensors:
        return _unet(tensors, step)
    if (form := lora_layout(tensors)) is not None:
        return _lora(tensors, form)
    layout = _layout_of(tensors)
    if layout is None:
        return {"format": "unknown tensors", "names": sorted(tensors)[:5]}
    return _adapter(tensors, layout, step)


def _is_concept(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, "pt") as file:
        return HEADER in (file.metadata() or {})


def _concept(path: Path) -> dict[str, Any]:
    meta, sets = read_meta(path)
    return {
        "format": "dreamvideo concept",
        "name": meta.name,
        "role": meta.role,
        "method": meta.method,
        "base": meta.base,
        "steps": dict(meta.steps),
        "sets": {label: {"kind": parts.kind, "sites": len(parts.sites)} for label, parts in sets.items()},
        "widths": sorted({site.width for parts in sets.values() for site in parts.sites}),
    }


def _word(data: Any) -> dict[str, Any]:
    name, vectors = named_vectors(data)
    if "string_to_param" not in data:
        form = "textual inversion (diffusers)"
    else:
        form = "textual inversion (AUTOMATIC1111)" if "name" in data else "official word"
    return {"format": form, "name": name, "vectors": vectors.shape[0], "widths": [vectors.shape[1]]}


def _unet(tensors: Mapping[str, Tensor], step: int | None) -> dict[str, Any]:
    config = unet_config(tensors)
    layout = Layout(config["layers_per_block"], (True,) * len(config["block_out_channels"]))
    return {
        "format": "official UNet",
        "widths": list(config["block_out_channels"]),
        "layers": config["layers_per_block"],
        "text": config["cross_attention_dim"],
        "adapters": sum(renamed(key, adapter_layers(layout)) is not None for key in tensors),
        "step": step,
    }


def _lora(tensors: Mapping[str, Tensor], form: str) -> dict[str, Any]:
    lower = [tensor for name, tensor in tensors.items() if re.search(r"lora_A|lora_down|lora\.down", name)]
    return {"format": f"LoRA ({form})", "layers": len(lower), "ranks": sorted({len(tensor) for tensor in lower})}


def _layout_of(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The first layout in which every tensor is part of an adapter."""
    for layout in LAYOUTS:
        if all(renamed(key, adapter_layers(layout)) is not None for key in tensors):
            return layout
    return None


def _adapter(tensors: Mapping[str, Tensor], layout: Layout, step: int | None) -> dict[str, Any]:
    plans = {label: plan(label, part) for label, part in by_set(tensors, layout).items()}
    return {
        "format": f"official {' and '.join(sorted(plans))} adapter",
        "sites": {label: len(sites) for label, (_, sites) in plans.items()},
        "widths": sorted({site.width for _, sites in plans.values() for site in sites}),
        "hidden": {label: kind.hidden or "half" for label, (kind, _) in plans.items()},
        "condition": {label: kind.condition for label, (kind, _) in plans.items()},
        "step": step,
    }


def _tensors(value: Any) -> list[Tensor]:
    """All tensors with numbers in floating point, however deep."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
