"""LoRA files of other tools <-> concepts.

diffusers     unet.PATH.lora_A.weight, .lora_B.weight; the configuration, each entry `unet.NAME`, is JSON in the header
              under lora_adapter_metadata. Older files: PATH.lora.down.weight, PATH.processor.to_k_lora.down.weight
PEFT          base_model.model.PATH.lora_A.weight, .lora_B.weight; alpha stands in adapter_config.json beside the file
AnimateDiff   MotionLoRA: like diffusers' older files, without `unet.`, and with the motion module's own names:
              ...motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.*
kohya         lora_unet_PATH.lora_down.weight, .lora_up.weight, .alpha; dots of PATH are underscores (musubi too)

A file may give every layer a rank and an alpha of its own. A set of ours has one of each: where they differ, lower
ranks are filled up with zeros and the factors go into B, which changes nothing that is computed.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamvideo.adapters.file import ConceptFile, Meta
from dreamvideo.adapters.graft import AdapterSet, Axis, Site
from dreamvideo.adapters.lora import LoRA
from dreamvideo.errors import BadFile, Unsupported
from dreamvideo.files import whole
from dreamvideo.official.adapters import BASE, FAMILY
from dreamvideo.official.checkpoint import naming, read_tensors, write_data

__all__ = ["LAYOUTS", "layer_path", "lora_layers", "lora_layout", "read_lora", "write_lora", "write_motion_lora"]

LAYOUTS = {"base_model.model.": "PEFT", "lora_unet_": "kohya", "unet.": "diffusers"}
"""How the names of a layout begin."""
METADATA = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
TIME = {"temp_attentions", "temp_convs", "transformer_in", "motion_modules"}
"""Modules of diffusers' UNets that mix frames."""
MOTION = "motion_modules"
MODULE = ".temporal_transformer"
"""What AnimateDiff's own names have more than diffusers'."""

_DOWN, _UP = "lora_A|lora_down|lora\\.down|lora_linear_layer\\.down", "lora_B|lora_up|lora\\.up|lora_linear_layer\\.up"
_TENSOR = re.compile(rf"(?P<path>.+?)\.(?:(?P<down>{_DOWN})|(?P<up>{_UP}))(?:\.default)?\.weight|(?P<scaled>.+)\.alpha")
_MOTION_LAYER = re.compile(
    rf"(.+\.{MOTION}\.\d+)\.(transformer_blocks\.\d+)\.attn([12])\.(to_q|to_k|to_v|to_out(?=\.0))(?:\.0)?"
)
_PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.")
# Module names of diffusers' UNets that have an underscore themselves.
_NAMES = (
    *("conv_in", "conv_norm_out", "conv_out", "conv_shortcut", "down_blocks", "linear_1", "linear_2", "mid_block"),
    *("motion_modules", "proj_in", "proj_out", "temp_attentions", "temp_convs", "time_emb_proj", "time_embedding"),
    *("to_k", "to_out", "to_q", "to_v", "transformer_blocks", "transformer_in", "up_blocks"),
)
_FLAT = re.compile(rf"(?:{'|'.join(_NAMES)})(?=_|$)|[^_]+")


@dataclass
class _Layer:
    """What a file says of one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


def lora_layout(names: Iterable[str]) -> str | None:
    """`diffusers`, `AnimateDiff`, `PEFT` or `kohya`, by the names of a file's tensors; None: it is no LoRA file."""
    names = list(names)
    if not any(_TENSOR.fullmatch(_modern(name)) for name in names):
        return None
    if any(MODULE in name for name in names):
        return "AnimateDiff"
    return next((LAYOUTS[start] for start in LAYOUTS if any(name.startswith(start) for name in names)), None)


def layer_path(flat: str) -> str:
    """`down_blocks_0_attentions_0_proj_in` -> `down_blocks.0.attentions.0.proj_in`, as diffusers' UNets name it."""
    return ".".join(_FLAT.findall(flat))


def read_lora(
    path: str | Path,
    *,
    name: str,
    created_by: str,
    base: str = BASE,
    family: str | None = None,
    licence: str | None = None,
    word: str | None = None,
    caption: str | None = None,
) -> ConceptFile:
    """Read a LoRA file as a concept with the set `subject` of spatial layers, `motion` of temporal ones, or both.

    Args:
        name: of the concept.
        base: name of the base that it was learned on.
        family: of that base; None tells it from the layers' names, `unet3d` where they fit several.
        licence: of that base.
        word: class word of a subject.
        caption: of a motion's clips.

    Raises:
        BadFile: unreadable, or it holds something other than low-rank deltas of a denoiser.
        Unsupported: it has deltas of the text encoder too.
    """
    path = Path(path)
    tensors, _ = read_tensors(path)
    with naming(path):
        layers = lora_layers(tensors, _configuration(path, lora_layout(tensors)))
        kind, parts = _uniform(layers)
    sets = {}
    for label, axis in (("subject", "space"), ("motion", "time")):
        sites = {site: pair for site, pair in parts.items() if site.axis == axis}
        if sites:
            sets[label] = AdapterSet(kind, sites)
            pairs = [(f"{site.key}.{part}", pair[part]) for site, pair in sites.items() for part in pair]
            sets[label].load_state_dict(dict(pairs))
            sets[label].requires_grad_(False)
    role = "motion" if "motion" in sets else "subject"
    meta = Meta(
        name=name,
        role=role,
        word=word,
        caption=caption,
        family=family or ("animatediff" if any(MOTION in place for place in layers) else FAMILY),
        base=base,
        licence=licence,
        method=f"lora-{role}",
        created_by=created_by,
    )
    return ConceptFile(meta, sets, path)


def lora_layers(
    tensors: Mapping[str, Tensor], configuration: Mapping[str, Any]
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A LoRA file's layers: path in the denoiser -> A (r, in, *kernel), B (out, r), and the factor alpha / r on B A x.

    `configuration` is PEFT's, empty where there is none: then alpha is r unless a tensor says it.

    Raises:
        BadFile: a tensor is no part of a low-rank delta, or a layer is not complete.
        Unsupported: the text encoder has deltas too.
    """
    layers: dict[str, _Layer] = {}
    for name, tensor in tensors.items():
        if name.startswith(("text_encoder", "lora_te", "base_model.model.text_model")):
            raise Unsupported(f"tensor {name} belongs to the text encoder; only deltas of the denoiser are read")
        start = next((start for start in LAYOUTS if name.startswith(start)), "")
        match = _TENSOR.fullmatch(_modern(name.removeprefix(start)))
        if match is None:
            raise BadFile(
                f"tensor {name} is foreign; expected PATH.lora_A.weight, PATH.lora_down.weight and their like"
            )
        place = match["path"] or match["scaled"]
        layer = layers.setdefault(layer_path(place) if start == "lora_unet_" else place, _Layer())
        if match["scaled"]:
            if tensor.numel() != 1:
                raise BadFile(f"tensor {name} has shape {list(tensor.shape)} where one number was expected")
            layer.alpha = tensor.item()
        elif match["down"]:
            layer.down = tensor
        else:
            layer.up = tensor
    return {path: _complete(path, layer, configuration) for path, layer in layers.items()}


def write_lora(folder: str | Path, concept: ConceptFile) -> Path:
    """Write a concept's low-rank sets as `pytorch_lora_weights.safetensors` in `folder`, for `load_lora_weights`.

    Raises:
        Unsupported: the concept has no such set.
    """
    tensors, ranks, alphas = {}, dict[str, int](), dict[str, float]()
    for adapters in concept.sets.values():
        if not isinstance(adapters.kind, LoRA):
            continue
        state = adapters.state_dict()
        for site in adapters.sites:
            if site.path in ranks:
                raise Unsupported(f"layer {site.path} has two low-rank deltas; a LoRA file holds one of each layer")
            down, up = (state[f"{site.key}.{part}"].cpu().contiguous() for part in ("down", "up"))
            tensors[f"unet.{site.path}.lora_A.weight"] = down
            tensors[f"unet.{site.path}.lora_B.weight"] = up.reshape(*up.shape, *[1] * (down.ndim - 2))
            ranks[site.path] = adapters.kind.rank
            alphas[site.path] = adapters.kind.rank if adapters.kind.alpha is None else adapters.kind.alpha
    if not tensors:
        raise Unsupported(f"concept {concept.meta.name} has no low-rank set, which is all that a LoRA file holds")
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    said = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(ranks),
        rank_pattern={path: value for path, value in ranks.items() if value != rank},
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha},
    ).to_dict()
    plain = {f"unet.{key}": sorted(value) if isinstance(value, set) else value for key, value in said.items()}
    path = Path(folder) / "pytorch_lora_weights.safetensors"
    with whole(path) as draft:
        save_file(tensors, draft, metadata={"format": "pt", METADATA: json.dumps(plain, indent=2, sort_keys=True)})
    return path


def write_motion_lora(path: str | Path, concept: ConceptFile) -> None:
    """Write a concept's low-rank sets as AnimateDiff's own MotionLoRA, which has no alpha: the factor goes into B.

    Raises:
        Unsupported: something else was learned than low-rank deltas of the attentions of motion modules, one of each.
    """
    tensors: dict[str, Tensor] = {}
    for adapters in concept.sets.values():
        kind, state = adapters.kind, adapters.state_dict()
        for site in adapters.sites:
            match = _MOTION_LAYER.fullmatch(site.path)
            if match is None or not isinstance(kind, LoRA):
                raise Unsupported(
                    f"{site.key}: MotionLoRA, AnimateDiff's form, holds attentions of motion modules alone"
                )
            module, block, attention, layer = match.groups()
            place = f"{module}{MODULE}.{block}.attention_blocks.{int(attention) - 1}.processor.{layer}_lora"
            if f"{place}.down.weight" in tensors:
                raise Unsupported(f"layer {site.path} has two low-rank deltas; a MotionLoRA holds one of each layer")
            down, up = (state[f"{site.key}.{part}"].cpu().contiguous() for part in ("down", "up"))
            tensors[f"{place}.down.weight"] = down
            tensors[f"{place}.up.weight"] = up if kind.alpha is None else up * (kind.alpha / kind.rank)
    write_data(path, {"state_dict": tensors})


def _modern(name: str) -> str:
    """AnimateDiff's names, and diffusers' from the time of attention processors, as they are now."""
    name = (
        name.replace(MODULE, "").replace(".attention_blocks.0.", ".attn1.").replace(".attention_blocks.1.", ".attn2.")
    )
    return _PROCESSOR.sub(lambda m: f".{m[1]}{'.0' if m[1] == 'to_out' else ''}.lora.", name)


def _configuration(path: Path, layout: str | None) -> Mapping[str, Any]:
    """PEFT's configuration: in the header, or in the file beside it."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA)
        if text is not None:
            return {key.removeprefix("unet."): value for key, value in _object(text, METADATA).items()}
    if layout != "PEFT":
        return {}
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        raise BadFile(f"{CONFIG} must lie beside it: PEFT says alpha there")
    return _object(beside.read_text(encoding="utf-8"), CONFIG)


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise BadFile(f"its {what} is not JSON") from error
    if not isinstance(said, dict):
        raise BadFile(f"its {what} is not an object")
    return said


def _complete(path: str, layer: _Layer, configuration: Mapping[str, Any]) -> tuple[Tensor, Tensor, float]:
    if layer.down is None or layer.up is None:
        raise BadFile(f"layer {path} has only one of its two matrices")
    shapes = list(layer.down.shape), list(layer.up.shape)
    if min(map(len, shapes)) < 2 or 0 in shapes[0] or shapes[1][1] != shapes[0][0] or set(shapes[1][2:]) - {1}:
        raise BadFile(f"layer {path}: {shapes[1]} does not go with {shapes[0]}")
    down, up = layer.down.float(), layer.up.float().flatten(1)
    rank = len(down)
    patterns = configuration.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if f".{path}".endswith(f".{key.lstrip('^')}")), None)
    alpha = next((a for a in (layer.alpha, own, configuration.get("lora_alpha")) if a is not None), rank)
    return down, up, alpha / (math.sqrt(rank) if configuration.get("use_rslora") else rank)


def _uniform(layers: Mapping[str, tuple[Tensor, Tensor, float]]) -> tuple[LoRA, dict[Site, dict[str, Tensor]]]:
    """One kind for all layers, and the tensors of each site."""
    ranks, factors = {len(down) for down, _, _ in layers.values()}, {factor for _, _, factor in layers.values()}
    rank = max(ranks)
    common = factors.pop() if len(factors) == 1 and 0 not in factors else 1.0
    sites = {}
    for path, (down, up, factor) in layers.items():
        missing = rank - len(down)
        low = torch.cat([down, down.new_zeros(missing, *down.shape[1:])]).contiguous()
        high = torch.cat([up * (factor / common), up.new_zeros(len(up), missing)], dim=1).contiguous()
        axis: Axis = "time" if TIME & set(path.split(".")) else "space"
        sites[Site(path, "out", axis, len(up), (len(up), *down.shape[1:]))] = {"down": low, "up": high}
    return LoRA(rank=rank, alpha=None if common == 1 else common * rank), sites
