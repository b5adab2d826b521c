"""Where something can be learned (`Site`), what is learned there (`AdapterSet`), and how it enters a model.

This is the only module that edits a model: `attach` lends a set's modules to the ports of a base, `detach`
takes them back. The set owns them throughout, so saving never searches a model for what was learned.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dreamvideo.adapters.ports import Graft, grafts_on, put_grafts
from dreamvideo.errors import BadFile, Unsupported

__all__ = ["AdapterSet", "Axis", "Kind", "Site", "attach", "detach"]

Axis = Literal["space", "time", "joint", "text"]
Locate = Callable[["Site"], nn.Module]


@dataclass(frozen=True)
class Site:
    """An address where something can be learned. A site is data: a file can hold it."""

    path: str
    """Of the module that has the port: inside the denoiser, or `tokens` for the token embedding."""
    port: str
    """`attn1`, `attn2`, `ff` on the residual stream; `time` behind a spatial block, on the same stream with the frames
    as tokens; `out`, `weight`, `bias` of a single layer; `word` on the token embedding."""
    axis: Axis
    """Along which axis the module mixes tokens; `text` is the token embedding."""
    width: int
    """Channels of the stream, or of the layer's output, at this port."""
    shape: tuple[int, ...] = ()
    """Of a single layer's tensor at this port: at `out` its weight's, (out, in, *kernel)."""

    @property
    def key(self) -> str:
        """The prefix of its tensors in a file."""
        return f"{self.path}.{self.port}"

    @property
    def parameter(self) -> str:
        """Which parameter of a single layer belongs to the port: at `out` the weight."""
        return "weight" if self.port == "out" else self.port


class Kind(ABC):
    """A kind of adapter: a frozen dataclass whose fields are its options.

    Questions: `build`: which module belongs on a site? `serial`: does it read what the branch made of the stream,
    rather than what the branch was given? And, where the default of none is not the answer, `change`: what does a
    module add to the layer's parameter?
    """

    label: ClassVar[str]
    """Its name in files."""
    ports: ClassVar[frozenset[str]]
    """On which ports its modules can stand."""
    dropout: float = 0.0
    """Chance of dropout in its modules while they are learned."""

    @property
    @abstractmethod
    def serial(self) -> bool:
        """True: the module reads the stream after the branch. False: before it, beside the branch."""

    @abstractmethod
    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        """The module for `site`, its `forward(x, given)` returning the delta; fresh, it changes nothing."""

    def change(self, adapter: nn.Module) -> Tensor | None:
        """What a module of this kind, at weight 1, comes to as a delta of its site's `parameter`; None where it stands
        beside the layers and changes none."""
        return None


class AdapterSet:
    """One module of a kind on each of some sites, owned together.

    Tensors are named `path.port.name`. `seed` makes the initial values: the same seed, the same set.
    """

    def __init__(self, kind: Kind, sites: Iterable[Site], *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.sites = tuple(sites)
        if not self.sites:
            raise Unsupported(f"a set of {kind.label} adapters has no site on this base")
        for site in self.sites:
            if site.port not in kind.ports:
                raise Unsupported(f"{site.key}: {kind.label} adapters stand on {', '.join(sorted(kind.ports))}")
        self.grafts = {site: Graft(kind.build(site, generator), serial=kind.serial).eval() for site in self.sites}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All tensors that are learned, by name, in the order of the sites."""
        for site, graft in self.grafts.items():
            for name, parameter in graft.adapter.named_parameters():
                yield f"{site.key}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """All tensors that are learned."""
        return [parameter for _, parameter in self.named_parameters()]

    def count(self) -> int:
        """The number of learned values."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> tensor, detached, sharing memory with the set."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values in.

        Raises:
            BadFile: a name is missing or unknown, or a shape differs.
        """
        own = dict(self.named_parameters())
        for name in sorted(own.keys() ^ tensors.keys()):
            raise BadFile(f"tensor {name}: {'missing' if name in own else 'not of this adapter'}")
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise BadFile(f"tensor {name}: shape {list(tensors[name].shape)}, not {list(parameter.shape)}")
            parameter.copy_(tensors[name])

    def changes(self) -> Iterator[tuple[Site, Tensor]]:
        """What the set at weight 1 adds to parameters of the base, each of its site's shape."""
        for site, graft in self.grafts.items():
            change = self.kind.change(graft.adapter)
            if change is not None:
                yield site, change.detach()

    def requires_grad_(self, wanted: bool) -> "AdapterSet":
        """Say whether the set is being learned."""
        for graft in self.grafts.values():
            graft.train(wanted).requires_grad_(wanted)
        return self

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, a set that is being learned takes part without receiving gradients."""
        before = [parameter.requires_grad for parameter in self.parameters()]
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, wanted in zip(self.parameters(), before, strict=True):
                parameter.requires_grad_(wanted)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "AdapterSet":
        """Move the set."""
        for graft in self.grafts.values():
            graft.to(device=device, dtype=dtype)
        return self

    def scale(self, value: float) -> None:
        """Set the factor on every delta of the set; 0 is the base alone."""
        for graft in self.grafts.values():
            graft.scale.fill_(value)

    @contextmanager
    def scaled(self, value: float) -> Iterator[None]:
        """`scale` for the length of a block, which must hold the backward pass as well."""
        before = [graft.scale.clone() for graft in self.grafts.values()]
        self.scale(value)
        try:
            yield
        finally:
            for graft, factor in zip(self.grafts.values(), before, strict=True):
                graft.scale.copy_(factor)


def attach(adapters: AdapterSet, locate: Locate) -> None:
    """Lend the set's modules to the ports that `locate` finds for its sites.

    Raises:
        Unsupported: the set is attached already.
    """
    places = [(locate(site), site.port, graft) for site, graft in adapters.grafts.items()]
    for module, port, graft in places:
        if any(other is graft for other in grafts_on(module, port)):
            raise Unsupported(f"this set of {adapters.kind.label} adapters is attached already")
        put_grafts(module, port, [*grafts_on(module, port), graft])


def detach(adapters: AdapterSet, locate: Locate) -> None:
    """Take the set's modules back.

    Raises:
        Unsupported: the set is not attached.
    """
    for site, graft in adapters.grafts.items():
        module = locate(site)
        before = list(grafts_on(module, site.port))
        kept = [other for other in before if other is not graft]
        if len(kept) == len(before):
            raise Unsupported(f"this set of {adapters.kind.label} adapters is not attached")
        put_grafts(module, site.port, kept)
