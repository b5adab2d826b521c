"""What is told while something long is going on."""

from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """What is told after every update."""

    stage: str
    step: int
    steps: int
    loss: float
