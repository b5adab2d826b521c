"""The official denoiser (VGen, `UNetSD_T2VBase`) <-> diffusers' `UNet3DConditionModel`, tensor by tensor.

Both compute the same in evaluation mode. One shape differs: the projections of temporal transformers are Conv1d
with kernel 1, [O, I, 1], in the official code and Linear, [O, I], in diffusers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from torch import Tensor

from dreamvideo.errors import BadFile, Unsupported
from dreamvideo.official.checkpoint import naming, read_tensors, write_checkpoint
from dreamvideo.official.names import Layout, adapter_layers, inverted, modules, renamed, temporal

__all__ = ["read_unet", "unet_config", "unet_of", "write_unet"]

HEADS_IN = 8
"""Heads of the temporal transformer behind the first convolution, fixed in both codes."""

DOWN = {True: "CrossAttnDownBlock3D", False: "DownBlock3D"}
UP = {True: "CrossAttnUpBlock3D", False: "UpBlock3D"}


def read_unet(path: str | Path) -> UNet3DConditionModel:
    """Read an official denoiser; adapters among its tensors are left out. The type of its numbers is kept.

    Raises:
        BadFile: unreadable, or not exactly the tensors of such a denoiser.
    """
    tensors, _ = read_tensors(path)
    with naming(path):
        return unet_of(tensors)


def unet_of(tensors: Mapping[str, Tensor]) -> UNet3DConditionModel:
    """What `read_unet` returns, of tensors that are read already.

    Raises:
        BadFile: they are not exactly those of such a denoiser.
    """
    config = unet_config(tensors)
    model = _skeleton(config)
    model.load_state_dict(_state(tensors, _layout(config), model.state_dict()), assign=True)
    return model.eval()


def write_unet(path: str | Path, model: UNet3DConditionModel, *, step: int = 0) -> None:
    """Write a denoiser under its official names. What is attached to it is no part of it and stays out.

    Raises:
        Unsupported: it has a module that the official code does not know.
    """
    layout = _layout(model.config)
    names, squeezed = inverted(modules(layout)), _squeezed(layout)
    state, tensors = model.state_dict(), {}
    for name in _skeleton(model.config).state_dict():
        key = renamed(name, names)
        if key is None:
            raise Unsupported(f"the official code has no counterpart of {name}")
        tensor = state[name].detach().cpu().contiguous()
        tensors[key] = tensor.unsqueeze(-1) if key in squeezed else tensor
    write_checkpoint(path, tensors, step=step)


def unet_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of a diffusers model for the tensors of an official one, from their names and shapes.

    Raises:
        BadFile: a tensor is missing that every official denoiser has.
    """

    def shape(key: str) -> torch.Size:
        if key not in tensors:
            raise BadFile(f"no tensor {key}: not a denoiser of the official code")
        return tensors[key].shape

    in_channels = shape("input_blocks.0.0.weight")[1]
    count = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("input_blocks."))
    # The first downsampler ends the first level.
    stride = next((i for i in range(count) if f"input_blocks.{i}.op.weight" in tensors), count)
    firsts = [f"input_blocks.{1 + i}" for i in range(0, count, stride)]
    attention = [f"{block}.1.proj_in.weight" in tensors for block in firsts]
    return {
        "sample_size": 32,  # ModelScopeT2V's 256 pixels; no tensor depends on it
        "in_channels": in_channels,
        "out_channels": shape("out.2.weight")[0],
        "down_block_types": tuple(DOWN[attends] for attends in attention),
        "up_block_types": tuple(UP[attends] for attends in reversed(attention)),
        "block_out_channels": tuple(shape(f"{block}.0.in_layers.2.weight")[0] for block in firsts),
        "layers_per_block": stride - 1,
        "cross_attention_dim": shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        # Width of one head, whatever the name says in other models of diffusers.
        "attention_head_dim": shape("input_blocks.0.1.proj_in.weight")[0] // HEADS_IN,
    }


def _layout(config: Mapping[str, Any]) -> Layout:
    return Layout(config["layers_per_block"], tuple(kind == DOWN[True] for kind in config["down_block_types"]))


def _skeleton(config: Mapping[str, Any]) -> UNet3DConditionModel:
    """The model without storage."""
    with torch.device("meta"):
        return UNet3DConditionModel.from_config(dict(config))


def _squeezed(layout: Layout) -> set[str]:
    """Official names of the tensors that diffusers keeps without their last axis."""
    return {f"{place}.{layer}.weight" for place in temporal(layout) for layer in ("proj_in", "proj_out")}


def _state(tensors: Mapping[str, Tensor], layout: Layout, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors under diffusers' names; `wanted` has the names and shapes that there must be."""
    names, left_out, squeezed = modules(layout), adapter_layers(layout), _squeezed(layout)
    state = {}
    for key, tensor in tensors.items():
        if renamed(key, left_out) is not None:
            continue
        name = renamed(key, names)
        if name is None or name not in wanted:
            raise BadFile(f"tensor {key} is foreign; expected the denoiser of the official code")
        state[name] = tensor.squeeze(-1) if key in squeezed else tensor
        if state[name].shape != wanted[name].shape:
            raise BadFile(f"tensor {key} has shape {list(tensor.shape)}, which does not fit the others")
    missing = [name for name in wanted if name not in state]
    if missing:
        raise BadFile(f"{len(missing)} tensors are missing, the first {renamed(missing[0], inverted(names))}")
    return state
