"""How a frozen denoiser runs while something attached to it is learned, and while it is only looked at."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["learning", "resting", "waiting"]


@contextmanager
def learning(denoiser: nn.Module, blocks: Iterable[nn.Module], *, dropout: float, compile: bool) -> Iterator[None]:
    """See `VideoBase.learning`; `blocks` are the transformer blocks, whose dropout stays off."""
    inside = {id(module) for block in blocks for module in block.modules()}
    layers = [m for m in denoiser.modules() if isinstance(m, nn.Dropout) and id(m) not in inside and dropout]
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p = dropout
        layer.train()
    if compile:
        denoiser.compile()
    try:
        yield
    finally:
        denoiser._compiled_call_impl = None  # What nn.Module.compile sets; it has no undoing of its own.
        for layer, p in zip(layers, before, strict=True):
            layer.p = p
            layer.eval()


@contextmanager
def resting(denoiser: nn.Module) -> Iterator[None]:
    """See `VideoBase.resting`."""
    layers = [module for module in denoiser.modules() if isinstance(module, nn.Dropout)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.train(training)


@contextmanager
def waiting(*models: nn.Module) -> Iterator[None]:
    """Inside the block the models are in main memory."""
    places = [next(model.parameters()).device for model in models]
    try:
        for model in models:
            model.to("cpu")
        yield
    finally:
        for model, place in zip(models, places, strict=True):
            model.to(place)
