"""What a metric is given."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = ["Metric", "Sample"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated video and what it was made from."""

    frames: np.ndarray
    """uint8 (F, H, W, 3)."""
    prompt: str | None = None
    """In plain words: the class word where the prompt had a learned one."""
    references: Sequence[np.ndarray] = ()
    """Pictures of the subject, uint8 (H, W, 3) of any sizes."""


class Metric(ABC):
    """Questions: `name`? `higher_is_better`? `protocol`: measured with what, and how? `measure`: what is it for this
    sample? None where it does not apply."""

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @property
    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """All that another's number must share to be comparable; it goes where the number goes."""

    @abstractmethod
    def measure(self, sample: Sample) -> float | None:
        """One number for one video."""
