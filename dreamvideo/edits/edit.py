"""What a paper that edits a clip must supply."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dreamvideo.bases.base import VideoBase
from dreamvideo.progress import Progress

__all__ = ["Edit", "Edited", "Task", "Updates"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A clip, and what is to become of it."""

    frames: Tensor
    """(F, 3, H, W) in [0, 1]."""
    masks: Tensor | None = None
    """(F, 1, H, W) in {0, 1}, 1 where the foreground is. None: nobody has said."""
    caption: str
    """What the clip shows."""
    prompt: str
    """What it is to show."""
    keep: Path | None = None
    """A folder for what depends on the clip alone and is dear to make: another edit of the clip finds it there, and one
    that was left goes on from it."""


@dataclass(frozen=True, kw_only=True)
class Edited:
    """The clip as it was asked for."""

    frames: Tensor
    """(F, 3, H, W) in [0, 1]."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """What the edit knows of its own quality, by name."""


Updates = Generator[Progress, None, Edited]
"""Work that tells of every update and, at the end, returns the clip; between two updates it can be closed."""


class Edit(ABC):
    """A paper's way to edit a clip: a frozen keyword-only dataclass whose fields are its settings.

    Question: `edited`: given a base, a clip, the caption of what is there and the prompt of what is wanted, what are
    the frames of the edited clip?
    """

    name: ClassVar[str]

    @abstractmethod
    def edited(self, base: VideoBase, task: Task, *, seed: int) -> Updates:
        """The edited clip, update by update; the same seed gives the same frames on a CPU.

        Raises:
            BadInput: the clip or the texts will not do.
            MissingWeights: a model that the edit looks with is not on this machine.
        """
