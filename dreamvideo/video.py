"""A video as it is handed out: its frames, and all that made them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamvideo import media
from dreamvideo.errors import BadFile
from dreamvideo.files import write_json

__all__ = ["Video", "described_file", "read_made"]


@dataclass(frozen=True)
class Video:
    """Frames, and all that made them."""

    frames: np.ndarray
    """uint8 (F, H, W, 3)."""
    fps: int
    made: Mapping[str, Any]
    """What `regenerate` needs to make the same frames."""

    def save(self, path: str | Path) -> Path:
        """Write the video by the suffix of `path` (mp4, gif, webp, png; a folder of png without one), and a JSON
        beside it."""
        path = Path(path)
        media.write_video(path, self.frames, fps=self.fps)
        write_json(path.with_name(path.name + ".json"), self.made)
        return path


def read_made(path: str | Path) -> dict[str, Any]:
    """What a JSON written by `Video.save` says, once every file that it names is as it was.

    Raises:
        BadFile: not such a JSON, or a file that it names is gone or has changed.
    """
    try:
        made = json.loads(Path(path).read_text(encoding="utf-8"))
        files = [(Path(file["path"]), file["sha256"]) for file in _files(made)]
    except FileNotFoundError as error:
        raise BadFile(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: not a JSON that was written beside a video") from error
    for file, digest in files:
        if not file.is_file():
            raise BadFile(f"{path} needs {file}, which is gone")
        if _sha256(file) != digest:
            raise BadFile(f"{path} needs {file} as it was; it has changed")
    return made


def described_file(path: str | Path | None) -> dict[str, str]:
    """How a video's JSON names a file that it needs; nothing for a concept in memory that has no file, or none now."""
    if path is None or not Path(path).is_file():
        return {}
    return {"path": str(Path(path).resolve()), "sha256": _sha256(Path(path))}


def _files(value: Any) -> Iterator[Mapping[str, str]]:
    """Everything in nested plain data that `described_file` wrote."""
    if isinstance(value, Mapping):
        if "sha256" in value:
            yield value
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        yield from _files(item)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
