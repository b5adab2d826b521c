"""How much memory sampling will take, told before any work is done, and how to save it where it is too much."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dreamvideo import memory
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.bases.images import SLICE
from dreamvideo.memory import Need
from dreamvideo.sample import SampleConfig, Thrift

__all__ = ["PRESETS", "chosen", "estimate"]

PRESETS = {
    "24gb": Thrift(),
    "16gb": Thrift(),
    "12gb": Thrift(apart=True),
    "8gb": Thrift(apart=True, offload=True),
}
"""By the memory of a card, for ModelScopeT2V at 32 frames of 256 x 256: what it takes in float32 and, with 8 GB, in
half precision, which leaves some room for more. Branches apart save the more the larger the video is, and a batch of
two gains little on a device that one of them keeps busy; what is moved takes its time once a video."""

# Passes that were counted, by all that their size depends on: many videos are made of one shape.
_passes: WeakKeyDictionary[VideoBase, dict[Hashable, int]] = WeakKeyDictionary()


def chosen(preset: str | None, base: VideoBase, config: SampleConfig, sets: Sequence[AdapterSet] = ()) -> Thrift:
    """The thrift of a preset, or none. `auto` takes the first preset that fits.

    Args:
        config: filled.
        sets: what will be attached.

    Raises:
        BadConfig: no such preset.
        BadInput: the base is large and the video will not fit: what it takes, what there is, and what to change.
    """
    wanted = [Thrift()] if preset is None else list(memory.named(preset, PRESETS))
    if not memory.large(base):
        return wanted[0]
    there = memory.there(base)

    def fits(thrift: Thrift) -> bool:
        return estimate(base, config, sets, thrift).total <= there

    for thrift in wanted:
        if fits(thrift):
            return thrift
    sparing = [f"--preset {name}" for name, thrift in PRESETS.items() if fits(thrift)][:1]
    smaller = f"fewer --frames than {config.frames} or a smaller --height and --width"
    raise memory.refusal("sampling", estimate(base, config, sets, thrift), base, " or ".join([*sparing, smaller]))


def estimate(base: VideoBase, config: SampleConfig, sets: Sequence[AdapterSet], thrift: Thrift) -> Need:
    """What a video takes at its peak, while it is denoised or while it is decoded. `config` is filled."""
    attached = sum(p.numel() * p.element_size() for adapters in sets for p in adapters.parameters())
    aside = [part for part in base.parts.modules if thrift.offload and part is not base.parts.denoiser]
    branches = 1 if thrift.apart or config.guidance == 1 else 2
    need = partial(Need, learned=attached, device=base.device)
    step = need(frozen=memory.weights(base, aside), passing=_denoising(base, config, sets, branches))
    after = need(frozen=memory.weights(base), passing=_decoding(base, config))
    return max(step, after, key=lambda need: need.total)


def _denoising(base: VideoBase, config: SampleConfig, sets: Sequence[AdapterSet], branches: int) -> int:
    """Bytes that a pass of the denoiser works on."""
    size = (config.frames, config.height, config.width)

    def step() -> None:
        text = base.encode_text([""] * branches).contiguous()  # Branches differ.
        x = torch.empty((branches, *base.latent_shape(*size)), device=base.device)
        with base.autocast():
            base.predict(x, torch.zeros(branches, dtype=torch.long, device=base.device), text)

    key = ("denoising", size, branches, tuple((adapters.kind, adapters.sites) for adapters in sets))
    with base.attached(*sets):
        return _counted(base, key, step, [p for adapters in sets for p in adapters.parameters()])


def _decoding(base: VideoBase, config: SampleConfig) -> int:
    """Bytes that the autoencoder works on."""
    size = (min(config.frames, SLICE), config.height, config.width)

    def decode() -> None:
        base.decode(torch.empty((1, *base.latent_shape(*size)), device=base.device))

    return _counted(base, ("decoding", size), decode, ())


@torch.no_grad()
def _counted(base: VideoBase, key: Hashable, run: Callable[[], None], parameters: Iterable[Tensor]) -> int:
    """`memory.peak`, once for every key."""
    counted = _passes.setdefault(base, {})
    if key not in counted:
        counted[key] = memory.peak(base, run, parameters)
    return counted[key]
