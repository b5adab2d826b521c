"""The denoising loop: guidance, composition of concepts, appearance guidance, inversion. There is one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from dreamvideo.adapters.attention import Change, Kept
from dreamvideo.adapters.file import ConceptFile
from dreamvideo.adapters.ports import Reach
from dreamvideo.adapters.weight import Weight
from dreamvideo.adapters.words import Word
from dreamvideo.bases.base import Defaults, VideoBase
from dreamvideo.bases.modes import Echo, waiting
from dreamvideo.diffusion import generator, offset_noise
from dreamvideo.errors import BadFile, BadInput
from dreamvideo.progress import Progress, driven

__all__ = [
    "Appearance",
    "Composition",
    "Controller",
    "Inversion",
    "SampleConfig",
    "Texts",
    "Thrift",
    "check_base",
    "denoise",
    "generate",
    "invert",
    "schedule",
    "trajectory",
]

# DDIM as the official sampler runs it: 50 steps are t = 981, 961, ..., 1, and the last one ends at abar_0.
_SAMPLERS = {
    "ddim": (DDIMScheduler, {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
    # With "leading" these two would begin at t = 951, where the signal is already to be seen.
    "dpm++": (DPMSolverMultistepScheduler, {"timestep_spacing": "linspace", "algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {"timestep_spacing": "linspace"}),
}


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How a video is sampled. What is unset is the base's own."""

    frames: int | None = None
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    fps: int | None = None
    steps: int | None = None
    """Denoising steps."""
    guidance: float | None = None
    """Classifier-free guidance; 1 runs the conditional branch alone."""
    sampler: str = "ddim"
    """`ddim`, or `dpm++` or `unipc`, made for fewer steps."""
    negative: str = ""
    """Prompt of the unconditional branch."""
    reuse: int = 1
    """At every which step the denoiser's deep levels are computed; between, what they said last is reused (DeepCache).
    Faster and not the same video; 1: at all."""

    def __post_init__(self) -> None:
        if self.sampler not in _SAMPLERS:
            raise BadInput(f"--sampler {self.sampler}: one of {', '.join(_SAMPLERS)}")
        for name in ("frames", "steps", "fps", "reuse"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name} {value}: at least 1")

    def filled(self, defaults: Defaults) -> "SampleConfig":
        """With the base's own values for what is unset."""
        unset = {name: value for name, value in asdict(defaults).items() if getattr(self, name) is None}
        return replace(self, **unset)


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """What appearance guidance is given."""

    vector: Tensor
    """(1, 1, D), the image vector of the conditional branch; the unconditional one gets zeros."""
    strength: tuple[float, float] = (1.0, 0.0)
    """Of the conditional and the unconditional branch."""


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """A start that remembers a clip: noise <- sqrt(s) inverted + sqrt(1 - s) noise (official code)."""

    latents: Tensor
    """(1, C, F, h, w), of the clip."""
    strength: float
    """s in [0, 1]; the official code suggests up to 0.5 for one clip."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What is sampled together."""

    concepts: Sequence[tuple[ConceptFile, Weight]] = ()
    appearance: Appearance | None = None
    noise_offset: float = 0.0
    inversion: Inversion | None = None
    reach: Reach | None = None
    """At which frames spatial self-attention looks; None: as the concepts were learned."""
    bypass_time: bool = False
    """Skip the layers that mix frames where there is one frame."""


@dataclass(frozen=True, kw_only=True)
class Thrift:
    """How memory is saved while a video is sampled. The video is the same, to rounding."""

    offload: bool = False
    """All parts but the denoiser wait in main memory while it runs."""
    apart: bool = False
    """The branches of the guidance run one after another. With a `Controller`, which sees all of them, they do not."""


def generate(
    base: VideoBase,
    prompt: str,
    composition: Composition,
    config: SampleConfig,
    *,
    seed: int,
    noise: Tensor | None = None,
    controller: "Controller | None" = None,
    thrift: Thrift = Thrift(),
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Tensor:
    """Sample the latents (1, C, F, h, w) of one video; `base.decode` makes pixels of them.

    Args:
        seed: makes the noise.
        noise: start from this instead, (1, C, F, h, w).
        controller: acts on the video and on what its attention sees.
        thrift: how memory is saved.
        on_step: told the step done and the number of steps.

    Raises:
        BadFile: a concept was learned on another base.
        BadInput: a size that the base cannot carry, a word of the prompt that was not learned, or concepts that want
            different attention.
    """
    check_base(base, (concept for concept, _ in composition.concepts))
    config = config.filled(base.defaults)
    if controller is not None and config.reuse > 1:
        raise BadInput(f"--reuse {config.reuse}: attention is watched in all steps or in none")
    if noise is None:
        shape = (1, *base.latent_shape(config.frames, config.height, config.width))
        noise = offset_noise(shape, composition.noise_offset, generator(seed, "noise"))
    reach = composition.reach or _reach(composition.concepts)
    with torch.no_grad(), ExitStack() as stack, base.autocast(), base.reaching(reach):
        for concept, _ in composition.concepts:
            stack.enter_context(base.attached(*concept.sets.values()))
        branches = [prompt] if config.guidance == 1 else [config.negative, prompt]
        text, empty = base.encode_text(branches), composition.inversion and base.encode_text([""])
        if thrift.offload:
            stack.enter_context(waiting(*(part for part in base.parts.modules if part is not base.parts.denoiser)))
        x = noise.to(base.device, torch.float32)
        if composition.inversion is not None and composition.inversion.strength > 0:
            s = composition.inversion.strength
            inverted = invert(base, composition.inversion.latents.to(x), empty, steps=config.steps)
            x = s**0.5 * inverted + (1 - s) ** 0.5 * x
        stack.enter_context(_guided(base, composition, len(branches)))
        work = denoise(
            base, x, lambda step, x: text, config,
            concepts=composition.concepts, controller=controller, apart=thrift.apart,
        )  # fmt: skip
        return driven(work, lambda progress: on_step(progress.step, progress.steps))


Texts = Callable[[int, Tensor], Tensor]
"""The number of a step, from 0, and its x_t (B, C, F, h, w) -> text states, (B, L, D) or, where videos are guided,
(2 B, L, D): the unconditional ones first."""


class Controller(ABC):
    """What acts on videos that are denoised side by side, such as a clip and its edit.

    Questions: `attention`: what becomes of the probabilities of an attention? `latents`: what of the videos?
    """

    @abstractmethod
    def attention(self, step: int, port: str, queries: int) -> Change | None:
        """In the step of that number, from 0: see `dreamvideo.adapters.attention.Control`."""

    @abstractmethod
    def latents(self, step: int, x: Tensor) -> Tensor:
        """The videos (B, C, F, h, w) after it -> those to go on with."""


@torch.no_grad()
def denoise(
    base: VideoBase,
    x: Tensor,
    texts: Texts,
    config: SampleConfig,
    *,
    concepts: Sequence[tuple[ConceptFile, Weight]] = (),
    controller: Controller | None = None,
    apart: bool = False,
) -> Generator[Progress, None, Tensor]:
    """Denoise videos (B, C, F, h, w) side by side, step by step, and return them.

        eps = eps_u + guidance (eps_c - eps_u)

    with all branches in one batch, the unconditional ones first, or `apart`, see `Thrift`. `config` is filled;
    `concepts` are attached.
    """
    scheduler, steps = schedule(base, config), config.steps
    told: Tensor | None = None
    kept: dict[int, Kept] = {}
    echoes: dict[int, Echo] = {}
    for number, t in enumerate(scheduler.timesteps):
        for concept, weight in concepts:
            for adapters in concept.sets.values():
                if not isinstance(adapters.kind, Word):  # A word is used by naming it, not by degree.
                    adapters.scale(weight.at(number / max(1, steps - 1)))
        text = texts(number, x)
        if text is not told:
            told, kept = text, {}
        control = controller and partial(controller.attention, number)
        together = len(x) if apart and controller is None else len(text)
        said = []
        for first in range(0, len(text), together):
            rows = slice(first, first + together)
            with (
                base.givens.rows(rows),
                base.attending(control, kept.setdefault(first, {})),
                echoes.setdefault(first, Echo(base.parts.denoiser, config.reuse)).at(number),
            ):
                videos = x.repeat(together // len(x), 1, 1, 1, 1)
                said.append(base.predict(videos, t.expand(together), text[rows]).float())
        prediction = torch.cat(said)
        if len(text) > len(x):
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + config.guidance * (conditional - unconditional)
        x = scheduler.step(prediction, t, x).prev_sample
        if controller is not None:
            x = controller.latents(number, x)
        yield Progress("sampling", number + 1, steps)
    return x


def schedule(base: VideoBase, config: SampleConfig) -> Any:
    """The diffusers scheduler of that sampler, its timesteps set."""
    kind, options = _SAMPLERS[config.sampler]
    scheduler = kind.from_config(base.parts.scheduler.config, clip_sample=False, **options)
    scheduler.set_timesteps(config.steps, device=base.device)
    return scheduler


def _reach(concepts: Sequence[tuple[ConceptFile, Weight]]) -> Reach:
    """The spatial self-attention that the concepts ask for, each frame's own where none does."""
    wanted = {concept.meta.sampling.reach for concept, _ in concepts} - {None}
    if len(wanted) > 1:
        raise BadInput(f"concepts learned with {' and '.join(sorted(wanted))} attention cannot be sampled together")
    return wanted.pop() if wanted else "frame"


def _guided(base: VideoBase, composition: Composition, branches: int):
    appearance, bypass_time = composition.appearance, composition.bypass_time
    if appearance is None:
        return base.given(bypass_time=bypass_time)
    vector = appearance.vector.to(base.device)
    conditional, unconditional = appearance.strength
    if branches == 1:
        return base.given(appearance=vector, strength=conditional, bypass_time=bypass_time)
    vectors, strength = torch.cat([torch.zeros_like(vector), vector]), torch.tensor([unconditional, conditional])
    return base.given(appearance=vectors, strength=strength, bypass_time=bypass_time)


@torch.no_grad()
def invert(base: VideoBase, latents: Tensor, text: Tensor, *, steps: int) -> Tensor:
    """DDIM inversion (official code, of the empty prompt's text): t = 0, s, 2s, ..., no guidance, no appearance.

        x_next = sqrt(abar_next) x_0 + sqrt(1 - abar_next) eps

    with abar_next = 0 at the end, where the result is pure eps. Latents (B, C, F, h, w) of text states (1, L, D) ->
    the same shape as the latents.
    """
    process, stride = base.process, base.process.steps // steps
    text, x = text.expand(len(latents), -1, -1), latents
    with base.given():
        for t in range(0, process.steps, stride):
            now = torch.full((len(x),), t, device=x.device)
            prediction = base.predict(x, now, text).float()
            clean, eps = process.clean(prediction, x, now), process.noise(prediction, x, now)
            abar = process.abar[t + stride].item() if t + stride < process.steps else 0.0
            x = abar**0.5 * clean + (1 - abar) ** 0.5 * eps
    return x


@torch.no_grad()
def trajectory(base: VideoBase, latents: Tensor, text: Tensor, *, steps: int) -> Iterator[Tensor]:
    """A clip on its way to noise, up the levels that `ddim` samples down (Null-text inversion, Mokady et al. 2023).

    Without guidance; what the denoiser says of a level is taken for what it would say of the one below. Clips
    (B, C, F, h, w) of text states (B, L, D) -> the same after each of the steps.
    """
    _, options = _SAMPLERS["ddim"]
    scheduler = DDIMInverseScheduler.from_config(base.parts.scheduler.config, clip_sample=False, **options)
    scheduler.set_timesteps(steps, device=base.device)
    x = latents
    for t in scheduler.timesteps:
        prediction = base.predict(x, t.expand(len(x)), text).float()
        x = scheduler.step(prediction, t, x).prev_sample
        yield x


def check_base(base: VideoBase, concepts: Iterable[ConceptFile]) -> None:
    """Refuse concepts that were learned on another base.

    Raises:
        BadFile: with the names of both bases.
    """
    for concept in concepts:
        meta = concept.meta
        # Rounding to half precision moves a weight by 0.4 % at most; another base has other weights.
        same = not meta.fingerprint or (
            len(meta.fingerprint) == len(base.fingerprint)
            and all(
                abs(ours - theirs) <= 0.01 * max(abs(ours), abs(theirs), 1e-4)
                for ours, theirs in zip(base.fingerprint, meta.fingerprint, strict=True)
            )
        )
        if meta.family != base.family or not same:
            raise BadFile(
                f"{concept.path or meta.name} was learned on base {meta.base} ({meta.family}), "
                f"not on {base.name} ({base.family}): name its base with --base"
            )
