"""Stock modules re-typed in place, so that adapters can be grafted on without renaming a key.

A ported class is a subclass of the stock class *with the same name* (diffusers finds modules by class name).
Opening sets `module.__class__`, closing sets it back. While something stands on its ports a ported module has a child
`grafts`, lists of grafts by port; blocks have `givens` too, what the current call is given. With no grafts it computes
what the stock module computes, to rounding, and leaves out what cannot change the result: keys and values of the same
text for every frame, the scores of a single token, convolutions over frames that are not there.

The residual ports of a transformer block follow the official DreamVideo code: an adapter reads the
un-normalised residual stream x and its delta is added to the stream,

    parallel:  y = x + branch(LN(x)) + delta(x)
    serial:    y = x + branch(LN(x)),  y + delta(y)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock as StockTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D as StockResnetBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamvideo.adapters.attention import Control, Kept, attended, recalled
from dreamvideo.errors import Unsupported

__all__ = [
    "GRAFTS",
    "BasicTransformerBlock",
    "Condition",
    "Givens",
    "Graft",
    "Reach",
    "ResnetBlock2D",
    "Through",
    "close_ports",
    "grafts_on",
    "open_ports",
    "put_grafts",
    "rematerialised",
    "sharing",
    "start_detached",
]

GRAFTS = "grafts"
"""The name of the child that holds a ported module's grafts by port, while it has some."""

Reach = Literal["frame", "sparse-causal", "first"]
"""At which frames the spatial self-attention of frame f looks: f itself; the first one and f - 1 (Tune-A-Video); the
first one (Video-P2P)."""

Through = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A layer as a function of its input, weight and bias: its stride, padding and the like stay its own."""


class Condition(NamedTuple):
    """What appearance guidance gives to adapters."""

    appearance: Tensor  # (B, 1, D) image vectors, B the batch of the denoiser or 1
    strength: Tensor  # (B, 1, 1) or (1, 1, 1), the factor lambda on the condition layer's output


class Givens:
    """What one call of a base is given beside its inputs; one object a base, shared by all its ports."""

    def __init__(self) -> None:
        self.condition: Condition | None = None
        self.bypass_time = False
        self.reach: Reach = "frame"
        self.control: Control | None = None
        self.frames = 1
        """Of the current call, where spatial layers look at other frames."""
        self.per_text = 1
        """Of the current call: rows that follow each other in the batch of spatial layers and share one text."""
        self.kept: Kept | None = None
        """What the texts' keys and values were in calls before, while the texts stay the same."""
        self.rematerialise = False

    @contextmanager
    def using(self, values: Mapping[str, Any]) -> Iterator[None]:
        """Set some of the fields, by name, for the length of a block."""
        before = {name: vars(self)[name] for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)

    def rows(self, part: slice) -> AbstractContextManager[None]:
        """Inside the block calls are of that part of the batch that the condition was given for."""
        condition = self.condition
        if condition is not None:
            condition = Condition(*(values[part] if len(values) > 1 else values for values in condition))
        return self.using({"condition": condition})


class Graft(nn.Module):
    """An adapter module on a port: its weight, and whether it reads the branch's input or its output."""

    scale: Tensor

    def __init__(self, adapter: nn.Module, *, serial: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self.serial = serial
        # A buffer, because a Python number would cost a compiled graph for every new value.
        self.register_buffer("scale", torch.ones(()), persistent=False)


def grafts_on(module: nn.Module, port: str) -> Iterable[Any]:
    """The grafts on one port of a ported module."""
    ports = module._modules.get(GRAFTS)
    return ports[port] if ports is not None and port in ports else ()  # type: ignore[index, operator]


def put_grafts(module: nn.Module, port: str, grafts: Iterable[nn.Module]) -> None:
    """Say which grafts are on a port. A module without any has no trace of them, and is as fast as a stock one."""
    ports = module._modules.setdefault(GRAFTS, nn.ModuleDict())
    kept = nn.ModuleList(grafts)
    if kept:
        ports[port] = kept  # type: ignore[index]
    else:
        ports.pop(port)  # type: ignore[union-attr, operator]
    if not ports:
        del module._modules[GRAFTS]


def rematerialised(givens: Givens, function: Any, *args: Any) -> Any:
    """`function(*args)`, keeping no activations for the backward pass where the givens ask for that."""
    if givens.rematerialise and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def sharing(x_t: Tensor, text: Tensor) -> int:
    """Latents (B, C, F, h, w), text (B, L, D) -> how many rows of the batch (B F, ...) of spatial layers follow each
    other and share one text: all of them, where the text is one row in memory, as it is of equal prompts."""
    return x_t.shape[2] * (len(text) if text.stride(0) == 0 else 1)


def start_detached(states: Tensor) -> Tensor:
    """What is made of text states, (B, L, D) -> the same; the start token, equal in every prompt, has no gradient."""
    return torch.cat([states[:, :1].detach(), states[:, 1:]], dim=1)


class BasicTransformerBlock(StockTransformerBlock):
    """diffusers' transformer block with a port on each residual branch."""

    stock: ClassVar[type[nn.Module]] = StockTransformerBlock
    ports: ClassVar[tuple[str, ...]] = ("attn1", "attn2", "ff")
    givens: Givens

    @staticmethod
    def check(block: StockTransformerBlock) -> None:
        """Refuse a block whose computation differs from the one that `branches` restates."""
        if block.norm_type != "layer_norm":
            raise Unsupported(f"transformer blocks with norm_type {block.norm_type!r} have no ports, only layer_norm")
        if "fuser" in block._modules:
            raise Unsupported("transformer blocks with a GLIGEN fuser have no ports")
        if block._chunk_size is not None:
            raise Unsupported("feed-forward chunking hides the ports; disable it first")

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        # The condition is read here, once, and handed on: read inside the rematerialised part, a second forward
        # before the backward pass would change it silently.
        return rematerialised(
            self.givens,
            self.branches,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            encoder_attention_mask,
            cross_attention_kwargs or {},
            self.givens.condition,
            self.givens.control,
            self.givens.per_text,
        )

    def branches(
        self,
        x: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        text_mask: Tensor | None,
        options: dict[str, Any],
        given: Condition | None,
        control: Control | None,
        per_text: int,
        seen: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The three residual branches, each through its port. Every text comes `per_text` times in a row. `seen` makes
        of the normalised stream what self-attention looks at; None: the stream itself."""
        inner = self.placed(self.norm1(x))
        own_text = text if self.only_cross_attention else None if seen is None else seen(inner)
        x = self.port("attn1", x, self.attend("attn1", inner, own_text, mask, options, control, per_text=1), given)
        if self.attn2 is not None:
            inner = self.placed(self.norm2(x))
            branch = self.attend("attn2", inner, text, text_mask, options, control, per_text=per_text)
            x = self.port("attn2", x, branch, given)
        return self.port("ff", x, self.ff(self.norm3(x)), given)

    def attend(
        self,
        port: str,
        x: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        options: dict[str, Any],
        control: Control | None,
        *,
        per_text: int,
    ) -> Tensor:
        """What the attention of that port says, with other probabilities where the control has some. Every text comes
        `per_text` times in a row."""
        attention = getattr(self, port)
        change = None if control is None else control(port, x.shape[1])
        if change is not None:
            return attended(attention, x, text, mask, change)
        if text is None:
            return _within(attention, x, mask, options)
        # Queries do not meet each other: rows of one text are one sequence, and need it once.
        together = x.unflatten(0, (-1, per_text)).flatten(1, 2)
        mask = None if mask is None else mask[::per_text]
        kept = self.givens.kept
        if kept is None or mask is not None or not _stock(attention) or _learned(attention.to_k, attention.to_v):
            return attention(together, text[::per_text], mask, **options).view_as(x)
        return recalled(attention, together, text[::per_text], kept).view_as(x)

    def placed(self, x: Tensor) -> Tensor:
        return x if self.pos_embed is None else self.pos_embed(x)

    def port(self, name: str, x: Tensor, branch: Tensor, given: Condition | None) -> Tensor:
        """x + branch + the grafts' deltas. Deltas are summed, so the order of grafts means nothing."""
        y = result = branch + x
        for graft in grafts_on(self, name):
            result = torch.addcmul(result, graft.adapter(y if graft.serial else x, given), graft.scale)
        return result

    def measure(self, port: str) -> tuple[int, tuple[int, ...]]:
        """Channels of the stream at a port; there is no single tensor there."""
        return (0 if port == "attn2" and self.attn2 is None else self.dim), ()


def _within(attention: Any, x: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    """attention(x). The softmax over a single token is 1 whatever the query, so that one frame's attention over time is
    its value; but what is learned on queries or keys is to get its gradient, a zero."""
    if x.shape[1] > 1 or mask is not None or not _stock(attention) or _learned(attention.to_q, attention.to_k):
        return attention(x, None, mask, **options)
    out, dropout = attention.to_out
    return dropout(out(attention.to_v(x)))


def _stock(attention: Any) -> bool:
    return type(attention.processor) in (AttnProcessor, AttnProcessor2_0)


def _learned(*layers: nn.Module) -> bool:
    return any(GRAFTS in layer._modules for layer in layers)


class ResnetBlock2D(StockResnetBlock):
    """diffusers' residual block, rematerialised where the givens ask for that."""

    stock: ClassVar[type[nn.Module]] = StockResnetBlock
    ports: ClassVar[tuple[str, ...]] = ()
    givens: Givens

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        return rematerialised(self.givens, super().forward, input_tensor, temb)


def open_ports(model: nn.Module, givens: Givens, classes: Iterable[type[nn.Module]]) -> None:
    """Re-type every module of `model` whose exact class is the stock of one of the ported `classes`.

    Raises:
        Unsupported: a hook replaced `forward` on a module, which would bypass the ports, or a transformer block
            computes something that its ported class does not.
    """
    ported: Mapping[type[nn.Module], Any] = {kind.stock: kind for kind in classes}  # type: ignore[attr-defined]
    for path, module in model.named_modules():
        kind = ported.get(type(module))
        if kind is None:
            continue
        if "forward" in vars(module):
            raise Unsupported(f"{path}: a hook replaced its forward; build the base before compiling or offloading")
        if issubclass(kind, BasicTransformerBlock):
            kind.check(module)
        module.__class__ = kind
        module.givens = givens  # type: ignore[assignment]


def close_ports(model: nn.Module, classes: Iterable[type[nn.Module]]) -> None:
    """Undo `open_ports`: stock classes, no trace."""
    ported = tuple(classes)
    for module in model.modules():
        if type(module) in ported:
            module.__class__ = type(module).stock  # type: ignore[attr-defined]
            del module.givens
            module._modules.pop(GRAFTS, None)
