"""An edit from its recipe to its frames: what is edited, how, and when it is left."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dreamvideo import config, edits, media
from dreamvideo import recipe as recipes
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Example, read_concept
from dreamvideo.edits.edit import Edit, Edited, Task
from dreamvideo.errors import BadInput, BadMedia, Interrupted, RunFailed
from dreamvideo.progress import Progress, driven
from dreamvideo.stopping import stopping

__all__ = ["ClipConfig", "EditRecipe", "Source", "perform", "read", "resolve"]


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How much of a clip is edited. What is unset is the base's own; a short clip is edited as it is."""

    frames: Annotated[int | None, Field(ge=1)] = None
    height: Annotated[int | None, Field(ge=8)] = None
    """Pixels."""
    width: Annotated[int | None, Field(ge=8)] = None
    """Pixels."""
    fps: Annotated[int | None, Field(ge=1)] = None


@dataclass(frozen=True, kw_only=True)
class EditRecipe:
    """An edit with its settings, and the part of the clip that it sees."""

    edit: Edit
    clip: ClipConfig = field(default_factory=ClipConfig)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A clip as an edit sees it."""

    frames: Tensor
    """(F, 3, H, W) in [0, 1]."""
    masks: Tensor | None
    """(F, 1, H, W) in {0, 1}."""
    caption: str
    fps: int
    path: Path
    mask_files: tuple[Path, ...] = ()


def resolve(
    name: str, base: VideoBase, *, recipe: str | None = None, settings: Iterable[Mapping[str, Any]] = ()
) -> EditRecipe:
    """A complete recipe, its clip's sizes filled in.

    Args:
        recipe: a shipped recipe's name or a TOML file; by default the one named like the base, else `paper`.
        settings: nested dicts laid over it, the later one on top.

    Raises:
        BadInput: no such edit or recipe, or an unknown or wrong setting.
    """
    kind = edits.find(name)
    values = config.merged(recipes.read(name, base, recipe), *settings)
    recipes.check_sections(values, ("edit", "clip"))
    unset = {size: getattr(base.defaults, size) for size in ("frames", "height", "width", "fps")}
    return EditRecipe(
        edit=config.build(kind, values.get("edit", {}), where="edit"),
        clip=config.build(ClipConfig, {**unset, **values.get("clip", {})}, where="clip"),
    )


def read(path: str | Path, sizes: ClipConfig, *, caption: str | None) -> Source:
    """A clip, its caption and the masks that lie beside it, `masks/NAME/*.png`, one for each of its frames.

    Raises:
        BadInput: no such clip or more than one, no caption, or masks that do not fit.
    """
    example, *others = read_concept(path, kind="clip", caption=caption).examples
    if others:
        raise BadInput(f"{path}: holds {len(others) + 1} clips; name the one to edit")
    if example.caption is None:
        raise BadInput(f"{example.path}: what does it show? Say so with --caption, or in {example.path.stem}.txt")
    size = (sizes.height, sizes.width)
    clip = media.read_clip(example.path, size=size)
    wanted = min(sizes.frames, len(clip.frames))
    plan = media.plan_frames(len(clip.frames), clip.fps, frames=wanted, rate=sizes.fps, short="loop")
    chosen = list(plan.indices(plan.starts[0]))
    mask_files = _mask_files(example, len(clip.frames))
    masks = [media.crop_mask(media.read_mask(mask_files[number]), size) for number in chosen if mask_files]
    return Source(
        frames=torch.from_numpy(clip.frames[chosen]).permute(0, 3, 1, 2) / 255,
        masks=torch.from_numpy(np.stack(masks))[:, None].float() if masks else None,
        caption=example.caption,
        fps=max(1, round(clip.fps / plan.stride)),
        path=example.path,
        mask_files=mask_files,
    )


def _mask_files(example: Example, count: int) -> tuple[Path, ...]:
    """As many as the clip has frames, or none."""
    folder = example.path.parent / "masks" / example.path.stem
    files = tuple(sorted(folder.glob("*.png")))
    if files and len(files) != count:
        raise BadMedia(f"{folder}: holds {len(files)} masks for {count} frames; there must be one for each")
    return files


def perform(
    edit: Edit, base: VideoBase, task: Task, *, seed: int, on_step: Callable[[Progress], None] = lambda progress: None
) -> Edited:
    """Edit a clip.

    Raises:
        BadInput: see `Edit.edited`.
        RunFailed: a loss is not finite.
        Interrupted: SIGINT or SIGTERM came.
    """
    kept = "with --keep the same command would go on" if task.keep is None else f"{task.keep} has what was done"
    with stopping() as stopped:

        def tell(progress: Progress) -> None:
            on_step(progress)
            where = f"at step {progress.step} of {progress.steps} of stage {progress.stage}"
            if progress.loss is not None and not math.isfinite(progress.loss):
                raise RunFailed(f"the loss is not finite {where}; learn slower")
            if stopped():
                raise Interrupted(f"stopped {where}; {kept}")

        return driven(edit.edited(base, task, seed=seed), tell)
