"""What is told while something long is going on."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Progress", "driven"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """What is told after every update or step."""

    stage: str
    step: int
    steps: int
    loss: float | None = None
    """None: nothing is being learned."""

    @property
    def note(self) -> str:
        """What there is to say beside the number."""
        return "" if self.loss is None else f"loss {self.loss:.4f}"


def driven(work: Generator[T, None, R], tell: Callable[[T], None]) -> R:
    """What `work` returns at its end; `tell` is told of all that it yields on the way, and ends it by raising."""
    with closing(work):
        while True:
            try:
                told = next(work)
            except StopIteration as end:
                return end.value
            tell(told)
