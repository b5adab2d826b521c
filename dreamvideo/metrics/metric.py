"""What a metric is given."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

__all__ = ["Metric", "Sample"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated video and what it was made from."""

    frames: np.ndarray
    """uint8 (F, H, W, 3)."""
    prompt: str | None = None
    """In plain words: the class word where the prompt had a learned one."""
    references: np.ndarray | None = None
    """Pictures of the subject, uint8 (N, H, W, 3)."""


class Metric(ABC):
    """Questions: `name`? `higher_is_better`? `measure`: what is it for this sample? None where it does not apply."""

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def measure(self, sample: Sample) -> float | None:
        """One number for one video."""
