"""Single layers with ports, re-typed in place as `ports` says: on a layer's output and on its parameters,

    out:           y = layer(x) + delta(x)
    weight, bias:  theta = theta_0 + delta

and on the token embedding, `word`, for learned words.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamvideo.adapters.ports import GRAFTS, Through, grafts_on

__all__ = ["LAYERS", "Conv2d", "Conv3d", "Embedding", "GroupNorm", "LayerNorm", "Linear"]


class Embedding(nn.Embedding):
    """A token embedding that also holds learned words: id `num_embeddings + i` is the i-th grafted vector."""

    stock: ClassVar[type[nn.Module]] = nn.Embedding
    ports: ClassVar[tuple[str, ...]] = ("word",)

    def forward(self, input: Tensor) -> Tensor:
        vectors = [graft.scale * graft.adapter.vectors for graft in grafts_on(self, "word")]
        known = super().forward(input.clamp(max=self.num_embeddings - 1))
        if not vectors:
            return known
        learned = torch.cat(vectors).to(known.dtype)[(input - self.num_embeddings).clamp(min=0)]
        return torch.where((input >= self.num_embeddings)[..., None], learned, known)

    def measure(self, port: str) -> tuple[int, tuple[int, ...]]:
        """Width of a token vector."""
        return self.embedding_dim, ()


def _measured(layer: nn.Module, port: str) -> tuple[int, tuple[int, ...]]:
    """Output channels, and the shape of the tensor that belongs to the port: the weight's at `out`."""
    tensor = layer._parameters["weight" if port == "out" else port]
    return (0, ()) if tensor is None else (tensor.shape[0], tuple(tensor.shape))


class Linear(nn.Linear):
    """A linear layer with ports on its output and its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.Linear
    ports: ClassVar[tuple[str, ...]] = ("out", "weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return _through_ports(self, input, F.linear) if GRAFTS in self._modules else super().forward(input)

    measure = _measured


class Conv2d(nn.Conv2d):
    """A convolution with ports on its output and its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.Conv2d
    ports: ClassVar[tuple[str, ...]] = ("out", "weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return _through_ports(self, input, self._conv_forward) if GRAFTS in self._modules else super().forward(input)

    measure = _measured


class Conv3d(nn.Conv3d):
    """A convolution over frames with ports on its output and its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.Conv3d
    ports: ClassVar[tuple[str, ...]] = ("out", "weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        if GRAFTS in self._modules:
            return _through_ports(self, input, self.through)
        return self.through(input, self.weight, self.bias)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This convolution with other parameters, (B, C, F, h, w) -> (B, C', F, h, w).

        Over frames alone it is that of an image of F rows and h w columns, for which the faster kernels are; of a
        single frame only the middle of the kernel is not padding.
        """
        length = self.kernel_size[0]
        over_frames = self.kernel_size == (length, 1, 1) and self.padding == (length // 2, 0, 0)
        if not over_frames or self.stride != (1, 1, 1) or self.dilation != (1, 1, 1) or self.padding_mode != "zeros":
            return self._conv_forward(x, weight, bias)
        padding = (length // 2, 0)
        if x.shape[2] == 1:
            weight, padding = weight[:, :, length // 2 : length // 2 + 1], (0, 0)
        y = F.conv2d(x.flatten(3), weight.squeeze(-1), bias, padding=padding, groups=self.groups)
        return y.unflatten(3, x.shape[3:])

    measure = _measured


class GroupNorm(nn.GroupNorm):
    """A group normalisation with ports on its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.GroupNorm
    ports: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return _through_ports(self, input, self.through) if GRAFTS in self._modules else super().forward(input)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This norm with other parameters."""
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    measure = _measured


class LayerNorm(nn.LayerNorm):
    """A layer normalisation with ports on its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.LayerNorm
    ports: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return _through_ports(self, input, self.through) if GRAFTS in self._modules else super().forward(input)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This norm with other parameters."""
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    measure = _measured


LAYERS: tuple[type[nn.Module], ...] = (Linear, Conv2d, Conv3d, GroupNorm, LayerNorm)
"""The ported classes of single layers."""


def _through_ports(layer: nn.Module, x: Tensor, through: Through) -> Tensor:
    """A layer's output with everything that is grafted on it; the base's own tensors stay as they are."""
    weight, bias = (_learned(layer, name) for name in ("weight", "bias"))
    if bias is not None and bias.dtype != weight.dtype:
        # A norm in half precision refuses a float32 parameter beside a half one.
        common = torch.promote_types(weight.dtype, bias.dtype)
        weight, bias = weight.to(common), bias.to(common)
    deltas = [graft.scale * graft.adapter(x, through) for graft in grafts_on(layer, "out")]
    y = through(x, weight, bias)
    return y + _summed(deltas) if deltas else y


def _learned(layer: nn.Module, name: str) -> Any:
    """A parameter of the layer with the deltas on it. The sum stays in float32 where they are: a norm's weight near 1
    would lose small ones in bfloat16."""
    own = layer._parameters[name]
    deltas = [graft.scale * graft.adapter.delta for graft in grafts_on(layer, name)]
    return own + _summed(deltas) if deltas else own


def _summed(deltas: list[Tensor]) -> Tensor:
    """Deltas are summed before they are added: the order of two sets means nothing then, to the last bit."""
    return sum(deltas[1:], deltas[0])
