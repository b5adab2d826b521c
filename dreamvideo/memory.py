"""How much memory learning will take, told before any work is done, and what to change where it is too much. For
sampling `dreamvideo.thrift` tells the same.

A pass of the denoiser, and one of the autoencoder, is made once with fake tensors, which have a shape and no values,
and the bytes that are alive at once are counted. Allocators and libraries take more than that: `MARGIN`, `CPU_MARGIN`.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dreamvideo.bases.base import VideoBase
from dreamvideo.bases.images import SLICE
from dreamvideo.concept import Concept
from dreamvideo.errors import BadConfig, BadInput
from dreamvideo.methods.method import Stage
from dreamvideo.recipe import Recipe

__all__ = [
    "AUTO",
    "PRESETS",
    "Need",
    "check",
    "chosen",
    "estimate",
    "large",
    "named",
    "peak",
    "refusal",
    "room",
    "there",
    "weights",
]

AUTO = "auto"
"""The first preset that fits."""

PRESETS: Mapping[str, Mapping[str, bool]] = {
    "24gb": {"rematerialise": False, "offload": True},
    "16gb": {"rematerialise": True, "offload": False},
    "12gb": {"rematerialise": True, "offload": False},
    "8gb": {"rematerialise": True, "offload": True},
}
"""Settings of `TrainConfig` by the memory of a card, for ModelScopeT2V at 32 frames of 256 x 256."""
MARGIN = 1.15
"""Fragments, workspaces and what else an allocator holds, as a factor."""
CPU_MARGIN = 2.0
"""The same where the allocator is the C library's, in whose heap blocks of some MiB leave holes: while something was
learned at the size of ModelScopeT2V, a process was measured to hold 1.5 to 2.1 times what was alive."""
LARGE = 2**30
"""Bytes of weights from which on it is worth some seconds to look: smaller bases fit anywhere."""
_LEARNED = 16
"""Bytes a learned value: itself, its gradient and AdamW's two moments, all float32."""

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes at the peak of a run."""

    frozen: int
    """Weights of the base that stay on the device."""
    learned: int
    """What is attached, with its gradients and the optimizer's moments while it is learned."""
    passing: int
    """The largest pass: what it works on and, while something is learned, keeps for the backward pass."""
    device: torch.device

    @property
    def total(self) -> int:
        """With the margin, which weights do not need."""
        return self.frozen + int((CPU_MARGIN if self.device.type == "cpu" else MARGIN) * (self.learned + self.passing))


def check(recipe: Recipe, base: VideoBase, concept: Concept, stages: Sequence[Stage]) -> None:
    """Refuse a run that will not fit, if its base is large.

    Raises:
        BadInput: with what it takes, what there is, and the preset that would fit.
    """
    if not large(base):
        return
    need = max((estimate(recipe, base, concept, stage) for stage in stages), key=lambda need: need.total)
    if need.total > there(base):
        raise refusal("learning", need, base, " or ".join(_smaller(recipe, base)))


def _smaller(recipe: Recipe, base: VideoBase) -> Iterator[str]:
    """What would make a run smaller, of what is not yet at its smallest."""
    train, data = recipe.train, recipe.data
    if not (train.rematerialise and train.offload):
        yield f"--preset {AUTO}"
    if train.batch > 1:
        yield f"--set train.batch={train.batch // 2}"
    frames = data.frames or base.defaults.frames
    if recipe.method.learns == "clip" and frames > 1:
        yield f"--set data.frames={frames // 2}"
    height, width = data.height or base.defaults.height, data.width or base.defaults.width
    yield f"--set data.height={height // 2} --set data.width={width // 2}"


def chosen(
    preset: str | None,
    resolve: Callable[..., Recipe],
    base: VideoBase,
    concept: Concept,
    *,
    settings: Iterable[Mapping[str, Any]] = (),
) -> Recipe:
    """The recipe that `resolve` makes of the settings of a preset, or of none, with `settings` over them. `auto` takes
    the first preset that fits, and the most sparing where none does.

    Raises:
        BadConfig: no such preset.
    """
    if preset is None:
        return resolve(settings=settings)
    wishes = list(settings)
    for train in named(preset, PRESETS):
        recipe = resolve(settings=[{"train": dict(train)}, *wishes])
        if preset == AUTO and _fits(recipe, base, concept):
            break
    return recipe


def named(preset: str, presets: Mapping[str, Settings]) -> Collection[Settings]:
    """What a preset stands for: `auto` for all of them, the most sparing one last.

    Raises:
        BadConfig: no such preset.
    """
    if preset != AUTO and preset not in presets:
        raise BadConfig(f"--preset {preset}: one of {AUTO}, {', '.join(presets)}")
    return presets.values() if preset == AUTO else [presets[preset]]


def refusal(doing: str, need: Need, base: VideoBase, advice: str) -> BadInput:
    """What to raise where a need is more than there is."""
    says = f"{doing} takes about {_gib(need.total)} of memory, and {base.device} has {_gib(there(base))} for it"
    return BadInput(f"{says}: try {advice}")


def _fits(recipe: Recipe, base: VideoBase, concept: Concept) -> bool:
    stages = recipe.method.stages(base, concept, seed=0)
    return all(estimate(recipe, base, concept, stage).total <= there(base) for stage in stages)


def estimate(recipe: Recipe, base: VideoBase, concept: Concept, stage: Stage) -> Need:
    """What one stage of a run takes at its peak."""
    data, train = recipe.data, recipe.train
    own = 1 if recipe.method.learns == "image" else data.frames or base.defaults.frames
    frames = max(view.frames or own for view in stage.views)
    size = (data.height or base.defaults.height, data.width or base.defaults.width)
    for adapters in stage.hold.values():
        adapters.requires_grad_(False)
    parameters = [p for adapters in stage.learn.values() for p in adapters.requires_grad_(True).parameters()]

    def update() -> None:
        text = base.encode_text([""] * train.batch).contiguous()  # Prompts can differ.
        x = torch.empty((train.batch, *base.latent_shape(frames, *size)), device=base.device)
        t = torch.zeros(train.batch, dtype=torch.long, device=base.device)
        with base.autocast():
            # A word that is learned is reached through the text.
            said = base.predict(x, t, text.detach().requires_grad_(stage.live_text))
        wanted = said.float().square().mean()
        torch.autograd.grad(wanted, [*parameters, x.requires_grad_()], allow_unused=True)

    def encode() -> None:
        base.encode_video(torch.empty(1, 3, min(frames, SLICE), *size, device=base.device))

    with base.attached(*stage.hold.values(), *stage.learn.values()), base.learning(rematerialise=train.rematerialise):
        passing = peak(base, update, parameters)
    aside = (base.parts.vae, base.parts.image_encoder) if train.offload else ()
    learned = _LEARNED * sum(p.numel() for p in parameters)
    steps = Need(frozen=weights(base, aside), learned=learned, passing=passing, device=base.device)
    # Examples are encoded before anything is learned, with all parts there.
    before = Need(frozen=weights(base), learned=0, passing=peak(base, encode, ()), device=base.device)
    return max(steps, before, key=lambda need: need.total)


def large(base: VideoBase) -> bool:
    """Whether it is worth to look at all."""
    return weights(base) >= LARGE


def there(base: VideoBase) -> int:
    """Bytes that a run may take on the base's device: those of its weights, and what is free beside them."""
    return weights(base) + room(base.device)


def room(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type == "cuda":
        # What the allocator holds and does not use is ours as well.
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def peak(base: VideoBase, run: Callable[[], None], parameters: Iterable[Tensor]) -> int:
    """Bytes alive at once while `run` runs, beside the base's weights and `parameters`; nothing is computed."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    frozen = [tensor for model in base.parts.modules for tensor in (*model.parameters(), *model.buffers())]
    count = _Alive(fakes.from_tensor(tensor) for tensor in (*frozen, *parameters))
    with fakes, count:
        run()
    return count.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operators have made and nobody has dropped."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.kept = [tensor.untyped_storage() for tensor in known]
        self.known = {storage._cdata for storage in self.kept}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.note, out)
        return out

    def note(self, tensor: Tensor) -> None:
        """A storage lives until its last tensor is dropped."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def weights(base: VideoBase, without: Collection[nn.Module | None] = ()) -> int:
    """Bytes of the base's parts, `without` some of them."""
    models = [model for model in base.parts.modules if not any(model is other for other in without)]
    # Scales of stored weights are buffers.
    return sum(t.numel() * t.element_size() for model in models for t in (*model.parameters(), *model.buffers()))


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
