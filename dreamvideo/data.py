"""A concept's examples -> what a training step sees, with everything that does not change computed once.

The autoencoder and the image encoder work frame by frame, so each source frame that can be drawn is encoded once,
whatever windows are drawn later. The posterior's mean and deviation are kept: a step samples the posterior as the
official code does, without encoding again.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamvideo import media
from dreamvideo.bases.base import VideoBase, fingerprint
from dreamvideo.bases.text import batched
from dreamvideo.concept import Concept, Example
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import BadInput
from dreamvideo.files import whole
from dreamvideo.views import View

__all__ = ["Batch", "ClassImages", "Data", "DataConfig", "Sampler", "order", "to_pixels"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How examples become tensors. What is unset is the base's own."""

    frames: int | None = None
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    fps: int | None = None
    short: Literal["loop", "mask", "grey"] = "loop"
    """A clip of too few frames is looped, or filled up outside the loss, or filled up with grey inside the loss (what
    the official code does)."""
    order: Literal["shuffle", "file"] = "shuffle"
    """`file`: always in the order of the files, with a smaller last batch, as the official code on one GPU."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step sees."""

    latents: Tensor
    """(B, C, F, h, w), a sample of the posterior."""
    prompts: tuple[str, ...]
    text: Tensor
    """(B, L, D)"""
    empty_text: Tensor
    """(1, L, D), the states of the empty prompt."""
    mask: Tensor | None = None
    """(B, 1, F, h, w) in {0, 1}: what counts in the loss. None: all."""
    appearance: Tensor | None = None
    """(B, F, D), image vectors of the frames."""
    numbers: tuple[int, ...] = ()
    """Of the examples."""
    prior: "Batch | None" = None
    """As many class images, repeated to as many frames."""


@dataclass(frozen=True)
class ClassImages:
    """Pictures of a subject's class, as the base itself makes them, on which what is learned must not drift."""

    prompt: str
    count: int
    bypass_time: bool = False
    """Made without the layers that mix frames."""


Sampler = Callable[[ClassImages, int], Tensor]
"""Class images and a number -> latents (1, C, 1, h, w) of one that the frozen base makes; the number is its seed."""


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 (F, H, W, 3) -> (1, 3, F, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def order(count: int, batch: int, *, seed: int, config: DataConfig) -> Iterator[list[int]]:
    """Endless batches of example numbers; every example once an epoch. A function of its arguments alone."""
    epoch, waiting = 0, []
    while True:
        if config.order == "file":
            yield from (list(range(count))[start : start + batch] for start in range(0, count, batch))
            continue
        while len(waiting) < batch:
            waiting += torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
            epoch += 1
        yield waiting[:batch]
        waiting = waiting[batch:]


@dataclass(frozen=True)
class _Item:
    """One example, encoded: row r belongs to source frame `rows[r]`; the grey frame's row is the last."""

    prompt: str
    plan: media.FramePlan
    rows: dict[int | None, int]
    mean: Tensor  # (C, N, h, w)
    std: Tensor  # (C, N, h, w)
    mask: Tensor | None  # (1, 1, h, w)
    appearance: Tensor | None  # (N, D)


class Data:
    """The encoded examples of a concept."""

    def __init__(
        self,
        base: VideoBase,
        concept: Concept,
        config: DataConfig,
        *,
        prompt: Callable[[Concept, Example], str],
        wants: AbstractSet[str],
        views: Sequence[View] = (View(),),
        class_images: ClassImages | None = None,
        sampler: Sampler | None = None,
        cache: Path | None = None,
    ) -> None:
        """Encode every view of every example once, or read what `cache` holds of it from an earlier run; likewise the
        class images, which `sampler` makes. `views` are those of all batches to come.

        Raises:
            BadInput: class images are asked for, and there is nothing to make them with.
        """
        self.base = base
        self._encoded: dict[str, dict[str, Tensor]] = {}
        self.items = [
            {view: self._item(concept, example, config, prompt, wants, view, cache) for view in views}
            for example in concept.examples
        ]
        self.class_images = class_images
        self._class_latents = self._sampled(class_images, sampler, config, cache) if class_images else []
        self.empty_text: Tensor | None = None
        self._text: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def _item(
        self,
        concept: Concept,
        example: Example,
        config: DataConfig,
        prompt: Callable[[Concept, Example], str],
        wants: AbstractSet[str],
        view: View,
        cache: Path | None,
    ) -> _Item:
        base, defaults = self.base, self.base.defaults
        size = (config.height or defaults.height, config.width or defaults.width)
        image = example.kind == "image"
        frames = view.frames or (1 if image else config.frames or defaults.frames)
        _, _, *latent = base.latent_shape(frames, *size)
        plan = media.plan_frames(
            min(example.frames, media.FRAME_LIMIT),
            example.fps or 1.0,
            frames=frames,
            rate=config.fps or defaults.fps,
            short="loop" if image or view.frames else config.short,
        )
        needed = sorted({i for start in plan.starts for i in plan.indices(start) if i is not None})
        rows: dict[int | None, int] = {source: row for row, source in enumerate(needed)} | {None: len(needed)}
        models = [base.parts.vae, *([base.parts.image_encoder] if "appearance" in wants else [])]
        parts = [example.digest, str(size), str(needed), base.precision, *(str(fingerprint(model)) for model in models)]
        parts += [] if view.look == View() else [str(view.look)]
        # Views that differ in words alone share what is encoded.
        if (known := str(parts)) not in self._encoded:
            self._encoded[known] = _cached(
                cache, parts, lambda: self._encode(example, size, needed, "appearance" in wants, view)
            )
        tensors = self._encoded[known]
        mask = self._mask(example, tuple(latent), view) if "mask" in wants and image else None
        if (seen := view.seen(*latent, pixels=size[0] // latent[0])) is not None:
            mask = seen if mask is None else mask * seen
        words = view.said(prompt(concept, example))
        return _Item(words, plan, rows, tensors["mean"], tensors["std"], mask, tensors.get("appearance"))

    def _encode(
        self, example: Example, size: tuple[int, int], needed: Sequence[int], appearance: bool, view: View
    ) -> dict[str, Tensor]:
        """Mean, deviation and image vectors of the needed frames and of a grey one."""
        if example.kind == "image":
            frames = media.crop_wide(media.read_image(example.path).pixels, size)[None]
        else:
            frames = media.read_clip(example.path, size=size).frames
        shown = view.show(to_pixels(frames[list(needed)]))
        pixels = torch.cat([shown, torch.zeros(1, 3, 1, *size)], dim=2)
        mean, std = self.base.encode_video(pixels)
        tensors = {"mean": mean[0], "std": std[0]}
        if appearance:
            tensors["appearance"] = self.base.embed_images(pixels)[0]
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def _mask(self, example: Example, latent: tuple[int, int], view: View) -> Tensor | None:
        if example.mask is not None:
            mask = media.read_mask(example.mask)
        elif example.alpha:
            mask = media.read_image(example.path).alpha >= 128
        else:
            return None
        shown = view.show(torch.from_numpy(media.crop_mask(mask, latent)).float()[None, None, None])
        return (shown[:, :, 0] >= 0.5).float()

    def _sampled(
        self, images: ClassImages, sampler: Sampler | None, config: DataConfig, cache: Path | None
    ) -> list[Tensor]:
        """The class images, one after another, so that a run that was stopped keeps those that are done."""
        if sampler is None:
            raise BadInput(
                f"{images.count} class images of {images.prompt!r} are wanted; learn through dreamvideo.learn"
            )
        base, size = self.base, (config.height, config.width)
        about = ["class image", images.prompt, str(size), str(base.defaults), base.precision, str(base.fingerprint)]
        about += ["bypass"] if images.bypass_time else []

        def make(number: int) -> dict[str, Tensor]:
            return {"latents": sampler(images, number)[0].cpu().contiguous()}

        return [_cached(cache, [*about, str(n)], lambda n=n: make(n))["latents"] for n in range(images.count)]

    @torch.no_grad()
    def encode_text(self) -> None:
        """Compute the text states of all prompts once, with the words that are attached now."""
        prompts = sorted({item.prompt for views in self.items for item in views.values()})
        prompts += [self.class_images.prompt] if self.class_images and self.class_images.prompt not in prompts else []
        states = self.base.encode_text(["", *prompts])
        self.empty_text = states[:1]
        self._text = dict(zip(prompts, states[1:], strict=True))

    def batch(self, numbers: Sequence[int], draw: Draw, *, live_text: bool, views: Sequence[View] = (View(),)) -> Batch:
        """Examples -> a batch; one of `views`, windows and posterior are drawn. `live_text` encodes the prompts with
        gradient."""
        items = [self.items[number][_drawn(views, draw)] for number in numbers]
        windows = [item.plan.starts[draw.index(len(item.plan.starts))] for item in items]
        picks = [_pick(item, start) for item, start in zip(items, windows, strict=True)]
        mean, std = (torch.stack([pick[name] for pick in picks]).to(self.base.device) for name in ("mean", "std"))
        prompts = tuple(item.prompt for item in items)
        text = self.base.encode_text(prompts) if live_text else batched(self._text, prompts)
        return Batch(
            latents=draw.posterior(mean, std),
            prompts=prompts,
            text=text,
            empty_text=self.empty_text,
            mask=_stacked([pick["mask"] for pick in picks], self.base.device),
            appearance=_stacked([pick["appearance"] for pick in picks], self.base.device),
            numbers=tuple(numbers),
            prior=self._prior(len(numbers), mean.shape[2], draw),
        )

    def _prior(self, count: int, frames: int, draw: Draw) -> Batch | None:
        if self.class_images is None or self.empty_text is None:
            return None
        prompt = self.class_images.prompt
        chosen = [self._class_latents[draw.index(len(self._class_latents))] for _ in range(count)]
        return Batch(
            latents=torch.stack(chosen).to(self.base.device).expand(-1, -1, frames, -1, -1),
            prompts=(prompt,) * count,
            text=batched(self._text, [prompt] * count),
            empty_text=self.empty_text,
        )


def _drawn(views: Sequence[View], draw: Draw) -> View:
    return views[0] if len(views) == 1 else views[draw.index(len(views))]


def _cached(cache: Path | None, parts: Sequence[str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` makes, made once for the same `parts`."""
    if cache is None:
        return make()
    path = cache / f"{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:24]}.safetensors"
    if not path.exists():
        with whole(path) as draft:
            save_file(make(), draft)
    return load_file(path)


def _pick(item: _Item, start: int) -> dict[str, Any]:
    """One window of an example."""
    sources = item.plan.indices(start)
    rows = [item.rows[source] for source in sources]
    # A grey frame looks like nothing: guidance takes a real one in its place.
    real = [row for row, source in zip(rows, sources, strict=True) if source is not None] or rows
    looks = [real[place % len(real)] for place in range(len(rows))]
    counted = torch.tensor(item.plan.counted(start)).float().view(1, -1, 1, 1)
    mask = item.mask
    if not counted.all():
        mask = counted.expand(1, -1, *item.mean.shape[-2:]) if mask is None else counted * mask
    return {
        "mean": item.mean[:, rows],
        "std": item.std[:, rows],
        "mask": mask,
        "appearance": None if item.appearance is None else item.appearance[looks],
    }


def _stacked(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    """Stack; where some are missing they count as ones, and where all are there is nothing to say."""
    some = next((tensor for tensor in tensors if tensor is not None), None)
    if some is None:
        return None
    return torch.stack([torch.ones_like(some) if tensor is None else tensor for tensor in tensors]).to(device)
