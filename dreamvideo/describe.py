"""What lies on disk before anything is learned from it: a concept's folder, a base's folder. For `inspect`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamvideo.concept import Example, Survey, survey
from dreamvideo.errors import BadInput
from dreamvideo.media import FRAME_LIMIT, plan_frames

__all__ = ["describe"]


def describe(path: str | Path, *, frames: int, fps: int) -> dict[str, Any]:
    """Describe a folder, a media file or a list of them.

    Args:
        frames, fps: what clips would be sampled to.

    Raises:
        BadInput: nothing is there, or it cannot be read at all.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if (path / "unet" / "config.json").is_file():
        return _base(path)
    return _concept(survey(path), frames=frames, fps=fps)


def _base(folder: Path) -> dict[str, Any]:
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    parts = sorted(part.name for part in folder.iterdir() if (part / "config.json").is_file())
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return {
        "what": "base",
        "denoiser": unet.get("_class_name"),
        "widths": unet.get("block_out_channels"),
        "text width": unet.get("cross_attention_dim"),
        "parts": parts,
        "bytes of weights": size,
    }


def _concept(found: Survey, *, frames: int, fps: int) -> dict[str, Any]:
    return {
        "what": "concept",
        "name": found.name,
        "word": found.word,
        "caption": found.caption,
        "examples": [_example(example, frames=frames, fps=fps) for example in found.examples],
        "left out": [{"file": str(left.path), "why": left.why} for left in found.left_out],
        "problems": [{"file": str(left.path), "why": left.why} for left in found.problems],
    }


def _example(example: Example, *, frames: int, fps: int) -> dict[str, Any]:
    side = min(example.width, example.height)
    values: Mapping[str, Any] = {
        "file": str(example.path),
        "kind": example.kind,
        "size": f"{example.width}x{example.height}",
        "square crop": f"{side}x{side}",
        "caption": example.caption,
        "mask": "its alpha channel" if example.alpha else example.mask and str(example.mask),
        "notes": list(example.notes),
    }
    if example.kind == "image":
        return dict(values)
    count = min(example.frames, FRAME_LIMIT)
    plan = plan_frames(count, example.fps or 1.0, frames=frames, rate=fps, short="loop")
    return {
        **values,
        "frames": example.frames,
        "fps": example.fps,
        "sampled": f"{frames} frames, every {plan.stride} of {count}, from {len(plan.starts)} possible starts",
    }
