"""How a frozen denoiser runs: while something attached to it is learned, while it is only looked at, while it waits in
main memory, and with deep features that are reused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from dreamvideo.errors import Unsupported

__all__ = ["Compile", "Echo", "learning", "resting", "waiting"]


Compile = Literal["none", "blocks", "whole", "graphs"]
"""What torch.compile is given: each transformer block, or all of the denoiser; graphs: all of it, as CUDA graphs."""


@contextmanager
def learning(denoiser: nn.Module, blocks: Sequence[nn.Module], *, dropout: float, compile: Compile) -> Iterator[None]:
    """See `VideoBase.learning`; `blocks` are the transformer blocks, whose dropout stays off."""
    inside = {id(module) for block in blocks for module in block.modules()}
    layers = [m for m in denoiser.modules() if isinstance(m, nn.Dropout) and id(m) not in inside and dropout]
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p = dropout
        layer.train()
    try:
        with _compiled(blocks if compile == "blocks" else [denoiser], compile):
            yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p
            layer.eval()


@contextmanager
def _compiled(modules: Sequence[nn.Module], compile: Compile) -> Iterator[None]:
    if compile == "none":
        yield
        return
    for module in modules:
        # Sizes stay as they are through a run: kernels for any size would be slower.
        module.compile(dynamic=False, mode="reduce-overhead" if compile == "graphs" else None)
    # Blocks share their code, and there are more of them than torch is ready to compile one code for.
    try:
        limit = max(torch._dynamo.config.recompile_limit, 2 * len(modules))
        with torch._dynamo.config.patch(recompile_limit=limit):
            yield
    except BackendCompilerFailed as error:
        why = str(error).partition("\n")[0]
        raise Unsupported(
            f"torch cannot compile here ({why}): mend that, or --restart --set train.compile=none"
        ) from error
    finally:
        for module in modules:
            module._compiled_call_impl = None  # Set by nn.Module.compile, which has no undoing of its own.


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


class Echo:
    """Deep features of a denoiser, reused (DeepCache; Ma, Fang, Wang, CVPR 2024).

    They change little from one step of sampling to the next. The levels below the first, down, through the middle and
    up again, are computed at every n-th step and else say again what they said last; the first level, with its skip
    connections, is computed at every step.
    """

    def __init__(self, denoiser: Any, every: int) -> None:
        self.every = every
        self.blocks: list[Any] = [*denoiser.down_blocks[1:], denoiser.mid_block, *denoiser.up_blocks[:-1]]
        self.said: dict[nn.Module, Any] = {}

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """For the call of that step, from 0."""
        if self.every == 1:
            yield
            return
        if step % self.every == 0:
            self.said.clear()
        for block in self.blocks:
            block.forward = partial(self._say, block, block.forward)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def _say(self, block: nn.Module, forward: Any, *inputs: Any, **named: Any) -> Any:
        if block not in self.said:
            self.said[block] = forward(*inputs, **named)
        return self.said[block]
