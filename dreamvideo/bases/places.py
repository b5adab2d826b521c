"""The addresses of a base: every place where something can be learned, and the module behind each."""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from dreamvideo.adapters.graft import Axis, Site
from dreamvideo.adapters.layers import LAYERS, STORED
from dreamvideo.adapters.ports import BasicTransformerBlock
from dreamvideo.adapters.storage import FORMATS, store
from dreamvideo.errors import BadFile, Unsupported

__all__ = ["TOKENS", "Places"]

TOKENS = "tokens"
"""The path of the token embedding's site; its real path differs between versions of transformers."""

_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
"""Where nearly all of a denoiser's weights are; what stands before and behind them is small and meets the noise."""


class Places:
    """What can be found in a denoiser and a token embedding whose ports are open."""

    def __init__(
        self,
        name: str,
        denoiser: nn.Module,
        embedding: nn.Module,
        *,
        block_axis: Callable[[str], Axis],
        time_modules: tuple[type[nn.Module], ...],
        time_paths: tuple[str, ...],
    ) -> None:
        """`name` of the base, for messages. `block_axis`, `time_modules` and `time_paths` as a family states them."""
        self.name, self.embedding = name, embedding
        modules = dict(denoiser.named_modules())
        self.blocks = {path: module for path, module in modules.items() if isinstance(module, BasicTransformerBlock)}
        self.layers = {path: module for path, module in modules.items() if type(module) in LAYERS}
        ported = {f"{path}.{name}" for path, layer in self.layers.items() for name in layer._parameters}
        self.portless = [name for name, _ in denoiser.named_parameters() if name not in ported]
        self.block_axes = {path: block_axis(path) for path in self.blocks}
        # Blocks have an axis of their own, and a whole denoiser that knows of frames is not temporal throughout.
        in_time = [
            path
            for path, module in modules.items()
            if isinstance(module, time_modules) and path and path not in self.blocks
        ]
        self.time_paths = (*time_paths, *in_time)
        self.storage: str | None = None
        self._modules: dict[str, nn.Module] = {TOKENS: embedding, **self.blocks, **self.layers}

    def axis(self, path: str) -> Axis:
        """What the layer at `path` belongs to: the axis of its block, or what stands around the blocks."""
        block = self.block_of(path)
        if block is not None:
            return self.block_axes[block]
        if any(path == place or path.startswith(f"{place}.") for place in self.time_paths):
            return "time"
        return "joint" if "joint" in self.block_axes.values() else "space"

    def block_of(self, path: str) -> str | None:
        """The path of the transformer block around the layer at `path`, if there is one."""
        parts = path.split(".")
        starts = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        return next((start for start in starts if start in self.blocks), None)

    def check(self, axis: str) -> None:
        """Refuse to tell space from time where both are mixed.

        Raises:
            Unsupported: with the axis's name.
        """
        if axis != "joint" and "joint" in self.block_axes.values():
            raise Unsupported(f"base {self.name} mixes space and time in the same blocks: it has no {axis!r} layers")

    def residual(self, axis: str, ports: Sequence[str]) -> list[Site]:
        """See `VideoBase.sites`."""
        self.check(axis)
        found = [
            Site(path, port, port_axis, width)
            for path, block in self.blocks.items()
            for port in ports
            # The port behind a spatial block is handed its stream with the frames as tokens.
            if (port_axis := "time" if port == "time" else self.block_axes[path]) == axis
            if port in block.ports and (width := block.measure(port)[0])
        ]
        if not found:
            raise Unsupported(f"base {self.name} has no {axis} layers with a port {' or '.join(ports)}")
        return found

    def words(self, ports: Sequence[str]) -> Iterator[Site]:
        """The token embedding."""
        yield from (Site(TOKENS, port, "text", self.embedding.embedding_dim) for port in ports)  # type: ignore[arg-type]

    def linears(self, axis: str, patterns: Sequence[str]) -> Iterator[Site]:
        """See `VideoBase.linears`."""
        self.check(axis)
        found = {}
        for path, layer in self.layers.items():
            block = self.block_of(path)
            if block is not None and self.block_axes[block] == axis and isinstance(layer, nn.Linear):
                found[path] = path.removeprefix(f"{block}.")
        if not found:
            raise Unsupported(f"base {self.name} has no {axis} layers")
        for pattern in patterns:
            if not any(fnmatchcase(inside, pattern) for inside in found.values()):
                known = ", ".join(dict.fromkeys(found.values()))
                raise Unsupported(f"layer {pattern!r}: the {axis} blocks of base {self.name} have {known}")
        for path, inside in found.items():
            if any(fnmatchcase(inside, pattern) for pattern in patterns):
                yield self._layer_site(path, "out")

    def parameters(self, axis: str, patterns: Sequence[str]) -> list[Site]:
        """See `VideoBase.weights`."""
        self.check(axis)
        for name in self.portless:
            if self.axis(name) == axis and any(fnmatchcase(name, pattern) for pattern in patterns):
                raise Unsupported(f"parameter {name} of base {self.name} cannot be tuned: its module has no ports")
        found = [
            self._layer_site(path, port)
            for path, layer in self.layers.items()
            if self.axis(path) == axis
            for port, parameter in layer._parameters.items()
            if parameter is not None and any(fnmatchcase(f"{path}.{port}", pattern) for pattern in patterns)
        ]
        if not found:
            raise Unsupported(f"base {self.name} has no {axis} parameters named {' or '.join(patterns)}")
        return found

    def store(self, form: str) -> None:
        """See `VideoBase.store`."""
        if self.storage is not None:
            raise Unsupported(f"base {self.name} is stored as {self.storage} already")
        for path, layer in self.layers.items():
            if path.startswith(_BLOCKS) and isinstance(layer, STORED):
                store(layer, FORMATS[form])
        self.storage = form

    def _layer_site(self, path: str, port: str) -> Site:
        width, shape = self.layers[path].measure(port)  # type: ignore[operator]
        return Site(path, port, self.axis(path), width, shape)

    def locate(self, site: Site) -> nn.Module:
        """See `VideoBase.locate`."""
        module = self._modules.get(site.path)
        if module is None or site.port not in module.ports or module.measure(site.port) != (site.width, site.shape):  # type: ignore[operator]
            size = f"shape {list(site.shape)}" if site.shape else f"width {site.width}"
            raise BadFile(f"base {self.name} has no {site.axis} port {site.key} of {size}")
        return module
