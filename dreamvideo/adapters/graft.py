"""Where something can be learned (`Site`), what is learned there (`AdapterSet`), and how it enters a model.

This is the only module that edits a model: `attach` lends a set's modules to the ports of a base, `detach`
takes them back. The set owns them throughout, so saving never searches a model for what was learned.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dreamvideo.adapters.ports import Graft
from dreamvideo.errors import BadFile, Unsupported

__all__ = ["AdapterSet", "Kind", "Site", "attach", "detach"]

Axis = Literal["space", "time", "joint", "text"]
Locate = Callable[["Site"], nn.Module]


@dataclass(frozen=True)
class Site:
    """An address where something can be learned. A site is data: a file can hold it."""

    path: str
    """Of the module that has the port: inside the denoiser, or `tokens` for the token embedding."""
    port: str
    """`attn1`, `attn2`, `ff` on the residual stream; `time` behind a spatial block, on the same stream with the frames
    as tokens; `word` on the token embedding."""
    axis: Axis
    """Along which axis the module mixes tokens; `text` is the token embedding."""
    width: int
    """Channels of the stream at this port."""

    @property
    def key(self) -> str:
        """The prefix of its tensors in a file."""
        return f"{self.path}.{self.port}"


class Kind(ABC):
    """A kind of adapter: a frozen dataclass whose fields are its options.

    Questions: `build`: which module belongs on a site? `serial`: does it read what the branch made of the stream,
    rather than what the branch was given?
    """

    label: ClassVar[str]
    """Its name in files."""

    @property
    @abstractmethod
    def serial(self) -> bool:
        """True: the module reads the stream after the branch. False: before it, beside the branch."""

    @abstractmethod
    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        """The module for `site`, its `forward(x, given)` returning the delta; fresh, it changes nothing."""


class AdapterSet:
    """One module of a kind on each of some sites, owned together.

    Tensors are named `path.port.name`. `seed` makes the initial values: the same seed, the same set.
    """

    def __init__(self, kind: Kind, sites: Iterable[Site], *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.sites = tuple(sites)
        self.grafts = {site: Graft(kind.build(site, generator), serial=kind.serial) for site in self.sites}
        if not self.sites:
            raise Unsupported(f"a set of {kind.label} adapters has no site on this base")

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

    def requires_grad_(self, wanted: bool) -> "AdapterSet":
        """Say whether the set is being learned."""
        for parameter in self.parameters():
            parameter.requires_grad_(wanted)
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "AdapterSet":
        """Move the set."""
        for graft in self.grafts.values():
            graft.to(device=device, dtype=dtype)
        return self

    def scale(self, value: float) -> None:
        """Set the factor on every delta of the set; 0 is the base alone."""
        for graft in self.grafts.values():
            graft.scale.fill_(value)


def attach(adapters: AdapterSet, locate: Locate) -> None:
    """Lend the set's modules to the ports that `locate` finds for its sites.

    Raises:
        Unsupported: the set is attached already.
    """
    for site, graft in adapters.grafts.items():
        on_port = locate(site).grafts[site.port]  # type: ignore[index]
        if any(other is graft for other in on_port):
            raise Unsupported(f"this set of {adapters.kind.label} adapters is attached already")
        on_port.append(graft)


def detach(adapters: AdapterSet, locate: Locate) -> None:
    """Take the set's modules back.

    Raises:
        Unsupported: the set is not attached.
    """
    for site, graft in adapters.grafts.items():
        ports = locate(site).grafts
        kept = [other for other in ports[site.port] if other is not graft]  # type: ignore[index]
        if len(kept) == len(ports[site.port]):  # type: ignore[index]
            raise Unsupported(f"this set of {adapters.kind.label} adapters is not attached")
        ports[site.port] = nn.ModuleList(kept)  # type: ignore[index]
