"""How the official code and diffusers name the same modules: one table, read from either side.

The official denoiser (VGen, `UNetSD_T2VBase`) numbers its blocks through all levels; a block keeps its residual
block in slot 0, its spatial transformer in slot 1 and its temporal one in slot 2. diffusers'
`UNet3DConditionModel` counts anew in every level and keeps a list of each sort. A key is renamed by the longest
module name it starts with; what follows is the same on both sides.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

__all__ = [
    "MODELSCOPE",
    "Layout",
    "adapter_layers",
    "inverted",
    "modules",
    "renamed",
    "spatial",
    "temporal",
    "to_diffusers",
    "to_official",
]


@dataclass(frozen=True)
class Layout:
    """What the numbering of blocks depends on."""

    layers: int = 2
    """Residual blocks a level; the decoder has one more."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """For each level, full scale first: does it have transformers?"""


MODELSCOPE = Layout()
"""ModelScopeT2V."""

ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

SUBLAYERS = {"attn_adapter": "attn1", "cross_attn_adapter": "attn2", "ff_adapter": "ff"}
"""Official adapter -> port. In temporal transformers both attentions look at frames."""

LINEARS = {"down_linear": "down", "up_linear": "up", "condition_linear": "condition"}


def to_diffusers(key: str, layout: Layout = MODELSCOPE) -> str | None:
    """Official name of a tensor of the denoiser -> diffusers' name; None: the layout has no such module."""
    return renamed(key, modules(layout))


def to_official(key: str, layout: Layout = MODELSCOPE) -> str | None:
    """diffusers' name of a tensor of the denoiser -> official name; None: the layout has no such module."""
    return renamed(key, inverted(modules(layout)))


def renamed(key: str, table: Mapping[str, str]) -> str | None:
    """`key` with the module that it belongs to renamed by `table`, or None where the table has none."""
    module = key
    while module := module.rpartition(".")[0]:
        if module in table:
            return table[module] + key[len(module) :]
    return None


def inverted(table: Mapping[str, str]) -> dict[str, str]:
    """The same table read from the other side."""
    return {ours: theirs for theirs, ours in table.items()}


@cache
def modules(layout: Layout) -> Mapping[str, str]:
    """Official module -> diffusers module, for the whole denoiser."""
    return ENDS | spatial(layout) | temporal(layout) | _residual(layout) | _resampling(layout)


@cache
def adapter_layers(layout: Layout) -> Mapping[str, str]:
    """Official adapter layer -> `path.port.layer` in an `AdapterSet`."""
    places = (spatial(layout) | temporal(layout)).items()
    return {
        f"{theirs}.transformer_blocks.0.{adapter}.{linear}": f"{ours}.transformer_blocks.0.{port}.{layer}"
        for (theirs, ours), (adapter, port), (linear, layer) in product(places, SUBLAYERS.items(), LINEARS.items())
    }


def spatial(layout: Layout) -> dict[str, str]:
    """The transformers that mix the tokens of a frame."""
    places = {f"{theirs}.1": f"{ours}.attentions.{j}" for theirs, ours, j, attends in _blocks(layout) if attends}
    return places | {"middle_block.1": "mid_block.attentions.0"}


def temporal(layout: Layout) -> dict[str, str]:
    """The transformers that mix frames."""
    places = {f"{theirs}.2": f"{ours}.temp_attentions.{j}" for theirs, ours, j, attends in _blocks(layout) if attends}
    return places | {"input_blocks.0.1": "transformer_in", "middle_block.2": "mid_block.temp_attentions.0"}


def _residual(layout: Layout) -> dict[str, str]:
    places = {f"{theirs}.0": (ours, j) for theirs, ours, j, _ in _blocks(layout)}
    places |= {"middle_block.0": ("mid_block", 0), "middle_block.3": ("mid_block", 1)}
    table = {}
    for theirs, (ours, j) in places.items():
        table |= {f"{theirs}.{layer}": f"{ours}.resnets.{j}.{name}" for layer, name in RESIDUAL.items()}
        table[f"{theirs}.temopral_conv"] = f"{ours}.temp_convs.{j}"  # spelt so in every official checkpoint
    return table


def _resampling(layout: Layout) -> dict[str, str]:
    """Between two levels: a block of its own on the way down, the last slot of a level's last block on the way up."""
    stride = layout.layers + 1
    table = {}
    # The decoder's levels, coarsest first; its last one, like the encoder's, is resampled to none.
    for level, attends in enumerate(layout.attention[:0:-1]):
        slot = 3 if attends else 1
        table[f"output_blocks.{level * stride + stride - 1}.{slot}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
        table[f"input_blocks.{level * stride + stride}.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    return table


def _blocks(layout: Layout) -> Iterator[tuple[str, str, int, bool]]:
    """(official block, diffusers level, place j in that level, does it have transformers?)"""
    stride = layout.layers + 1  # down: the residual blocks and the downsampler; up: one more residual block
    for level, attends in enumerate(layout.attention):
        for j in range(layout.layers):
            yield f"input_blocks.{1 + level * stride + j}", f"down_blocks.{level}", j, attends
    for level, attends in enumerate(reversed(layout.attention)):
        for j in range(stride):
            yield f"output_blocks.{level * stride + j}", f"up_blocks.{level}", j, attends
