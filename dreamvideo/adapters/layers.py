"""Single layers with ports, re-typed in place as `ports` says: on a layer's output and on its parameters,

    out:           y = layer(x) + delta(x)
    weight, bias:  theta = theta_0 + delta

and on the token embedding, `word`, for learned words. The weights theta_0 of linear layers and convolutions may be
stored in 8 bits, see `storage`.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv3d_input

from dreamvideo.adapters.ports import GRAFTS, grafts_on
from dreamvideo.adapters.storage import SCALE, parameter, through_stored

__all__ = ["LAYERS", "STORED", "Conv2d", "Conv3d", "Embedding", "GroupNorm", "LayerNorm", "Linear"]


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
        # What was permuted in place, as maps are into tokens, would be multiplied row by row of its batch; in half
        # precision a CPU would copy the weight for each.
        input = input.contiguous()
        return super().forward(input) if _is_plain(self) else _through_ports(self, input)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This layer with other parameters."""
        return F.linear(x, weight, bias)

    def back(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of its input of that shape, from that of its output."""
        return grad @ weight

    measure = _measured


class Conv2d(nn.Conv2d):
    """A convolution with ports on its output and its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.Conv2d
    ports: ClassVar[tuple[str, ...]] = ("out", "weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if _is_plain(self) else _through_ports(self, input)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This convolution with other parameters."""
        return self._conv_forward(x, weight, bias)

    def back(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of its input of that shape, from that of its output."""
        return conv2d_input(shape, weight, grad, self.stride, self.padding, self.dilation, self.groups)

    measure = _measured


class Conv3d(nn.Conv3d):
    """A convolution over frames with ports on its output and its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.Conv3d
    ports: ClassVar[tuple[str, ...]] = ("out", "weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return self.through(input, self.weight, self.bias) if _is_plain(self) else _through_ports(self, input)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This convolution with other parameters, (B, C, F, h, w) -> (B, C', F, h, w).

        Over frames alone it is that of an image of F rows and h w columns, for which the faster kernels are; of a
        single frame only the middle of the kernel is not padding.
        """
        if not self.is_over_frames:
            return self._conv_forward(x, weight, bias)
        weight, padding = self.on_image(weight, x.shape[2])
        y = F.conv2d(x.flatten(3), weight, bias, padding=padding, groups=self.groups)
        return y.unflatten(3, x.shape[3:])

    def back(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of its input of that shape, from that of its output."""
        if not self.is_over_frames:
            return conv3d_input(shape, weight, grad, self.stride, self.padding, self.dilation, self.groups)
        weight, padding = self.on_image(weight, shape[2])
        image = (*shape[:3], shape[3] * shape[4])
        return conv2d_input(image, weight, grad.flatten(3), padding=padding, groups=self.groups).view(shape)

    @property
    def is_over_frames(self) -> bool:
        """It mixes frames alone, and as many come out as go in."""
        length = self.kernel_size[0]
        over_frames = self.kernel_size == (length, 1, 1) and self.padding == (length // 2, 0, 0)
        plain = self.stride == (1, 1, 1) and self.dilation == (1, 1, 1) and self.padding_mode == "zeros"
        return over_frames and plain

    def on_image(self, weight: Tensor, frames: int) -> tuple[Tensor, tuple[int, int]]:
        """The kernel over an image of that many rows, (C', C, length, 1), and its padding."""
        middle = weight.shape[2] // 2
        if frames == 1:
            return weight[:, :, middle : middle + 1].squeeze(-1), (0, 0)
        return weight.squeeze(-1), (middle, 0)

    measure = _measured


class GroupNorm(nn.GroupNorm):
    """A group normalisation with ports on its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.GroupNorm
    ports: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if _is_plain(self) else _through_ports(self, input)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This norm with other parameters."""
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    measure = _measured


class LayerNorm(nn.LayerNorm):
    """A layer normalisation with ports on its parameters."""

    stock: ClassVar[type[nn.Module]] = nn.LayerNorm
    ports: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if _is_plain(self) else _through_ports(self, input)

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This norm with other parameters."""
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    measure = _measured


LAYERS: tuple[type[nn.Module], ...] = (Linear, Conv2d, Conv3d, GroupNorm, LayerNorm)
"""The ported classes of single layers."""
STORED: tuple[type[nn.Module], ...] = (Linear, Conv2d, Conv3d)
"""Those of them that can compute with a stored weight."""


def _is_plain(layer: nn.Module) -> bool:
    """Nothing stands on the layer, and its weight is what it computes with."""
    return GRAFTS not in layer._modules and SCALE not in layer._buffers


def _through_ports(layer: Any, x: Tensor) -> Tensor:
    """A layer's output with everything that is grafted on it; the base's own tensors stay as they are."""
    deltas = [graft.scale * graft.adapter(x, layer.through) for graft in grafts_on(layer, "out")]
    y = _through_parameters(layer, x)
    return y + _summed(deltas) if deltas else y


def _through_parameters(layer: Any, x: Tensor) -> Tensor:
    """A layer's output with what is grafted on its parameters."""
    bias = _learned(layer, "bias")
    if SCALE in layer._buffers and not [*grafts_on(layer, "weight")]:
        return through_stored(layer, x, bias)
    weight = _learned(layer, "weight")
    if bias is not None and bias.dtype != weight.dtype:
        # A norm in half precision refuses a float32 parameter beside a half one.
        common = torch.promote_types(weight.dtype, bias.dtype)
        weight, bias = weight.to(common), bias.to(common)
    return layer.through(x, weight, bias)


def _learned(layer: nn.Module, name: str) -> Any:
    """A parameter of the layer with the deltas on it. The sum stays in float32 where they are: a norm's weight near 1
    would lose small ones in bfloat16."""
    own = parameter(layer, name)
    deltas = [graft.scale * graft.adapter.delta for graft in grafts_on(layer, name)]
    return own + _summed(deltas) if deltas else own


def _summed(deltas: list[Tensor]) -> Tensor:
    """Deltas are summed before they are added: the order of two sets means nothing then, to the last bit."""
    return sum(deltas[1:], deltas[0])
