"""Frozen weights kept in 8 bits and brought back to the precision of computing at every use: an approximation.

    w_o ~ s_o c_o,   s_o = max |w_o| / C,   for every output channel o

The codes c are int8, evenly spaced with C = 127 (absmax quantisation: Dettmers et al. 2022, section 2), or
float8_e4m3fn, with C = 448 and a step that falls with the value (Micikevicius et al. 2022, section 3).

For the gradient of a layer's input autograd keeps the layer's weight. Of a stored weight it keeps the codes, and the
weight is made anew in the backward pass: of all layers' weights one at a time is there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dreamvideo.errors import Unsupported

__all__ = ["FORMATS", "SCALE", "Back", "Format", "parameter", "store", "through_stored"]

SCALE = "weight_scale"
"""The name of the buffer that a stored layer has beside its weight: s (out,), in the precision of computing."""

Back = Callable[[Tensor, Tensor, torch.Size], Tensor]
"""What a layer makes of the gradient of its output: gradient, weight, shape of the input -> gradient of the input."""


class Format(NamedTuple):
    """How a weight is coded."""

    dtype: torch.dtype
    largest: float
    """C, the code of a channel's largest value."""


FORMATS = {"int8": Format(torch.int8, 127.0), "fp8": Format(torch.float8_e4m3fn, 448.0)}
"""Name in options -> format."""


def store(layer: nn.Module, form: Format) -> None:
    """Keep the weight of a linear layer or a convolution in 8 bits, under its own name.

    Raises:
        Unsupported: a convolution pads with other than zeros, which `Back` does not know.
    """
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise Unsupported(f"a convolution with {layer.padding_mode} padding cannot be stored in 8 bits")
    weight = layer.get_parameter("weight").detach()
    largest = weight.float().abs().flatten(1).amax(dim=1)
    # The scale is rounded before anything is divided by it: the codes are those for the scale that is kept.
    scale = (largest / form.largest).clamp(min=torch.finfo(weight.dtype).tiny).to(weight.dtype)
    codes = (weight.float() / _by_channel(scale, weight).float()).clamp(-form.largest, form.largest)
    codes = codes if form.dtype.is_floating_point else codes.round()
    layer.weight = nn.Parameter(codes.to(form.dtype), requires_grad=False)
    layer.register_buffer(SCALE, scale)


def parameter(layer: nn.Module, name: str) -> Any:
    """A layer's parameter in the precision of computing, or None where it has none of that name."""
    own, scale = layer._parameters[name], layer._buffers.get(SCALE)
    return _restored(own, scale) if name == "weight" and own is not None and scale is not None else own


def through_stored(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """`layer.through` with its stored weight; `layer.back` is asked for the gradient of the input."""
    return _Through.apply(x, layer.weight, layer.weight_scale, bias, layer.through, layer.back)


class _Through(torch.autograd.Function):
    """A layer whose weight no graph keeps."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, through: Any, back: Back
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.back, ctx.shape = back, x.shape
        return through(x, _restored(codes, scale), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors
        of_x = ctx.back(grad, _restored(codes, scale), ctx.shape) if ctx.needs_input_grad[0] else None
        # Channels come last of a linear layer, second of a convolution.
        channels = (len(codes), *(1 for _ in codes.shape[2:]))
        of_bias = grad.sum_to_size(channels).flatten() if ctx.needs_input_grad[3] else None
        return of_x, None, None, of_bias, None, None


def _restored(codes: Tensor, scale: Tensor) -> Tensor:
    # Codes are exact in every precision of computing: the product alone is rounded.
    return codes.to(scale.dtype) * _by_channel(scale, codes)


def _by_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *(1 for _ in weight.shape[1:]))
