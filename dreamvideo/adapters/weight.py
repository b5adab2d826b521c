"""How much of a concept takes part in sampling: one number, or a schedule over the denoising steps."""

import math
from dataclasses import dataclass

from dreamvideo.errors import BadInput

__all__ = ["Weight"]


@dataclass(frozen=True)
class Weight:
    """A factor on a concept's deltas, as a function of progress in [0, 1] from the first denoising step to the last.

    Written as text: `0.8` is constant; `0.4..0.8` rises evenly; `0.4@0,0.8@0.1` holds each value from the given
    progress on (CustomCrafter's dynamic weights are of this form).
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """(progress, value), progress rising from 0."""
    even: bool = False
    """True: values change evenly between points. False: each is held until the next."""

    @classmethod
    def parse(cls, text: str | float) -> "Weight":
        """Read the written form.

        Raises:
            BadInput: the text is not of one of the three forms.
        """
        try:
            if not isinstance(text, str):
                weight = cls(((0.0, float(text)),))
            elif ".." in text:
                first, last = text.split("..")
                weight = cls(((0.0, float(first)), (1.0, float(last))), even=True)
            elif "@" in text:
                pairs = [part.split("@") for part in text.split(",")]
                weight = cls(tuple((float(progress), float(value)) for value, progress in pairs))
            else:
                weight = cls(((0.0, float(text)),))
        except ValueError as error:
            raise BadInput(f"weight {text!r}: write 0.8, 0.4..0.8 or 0.4@0,0.8@0.1") from error
        starts = [progress for progress, _ in weight.points]
        if starts != sorted(set(starts)) or starts[0] != 0 or starts[-1] > 1:
            raise BadInput(f"weight {text!r}: what stands behind @ must rise from 0 and end at 1 at most")
        if not all(math.isfinite(value) for _, value in weight.points):
            raise BadInput(f"weight {text!r}: a finite number is needed")
        return weight

    def __str__(self) -> str:
        """The written form, to the last digit."""
        if self.even:
            return "..".join(_written(value) for _, value in self.points)
        if len(self.points) == 1:
            return _written(self.points[0][1])
        return ",".join(f"{_written(value)}@{_written(progress)}" for progress, value in self.points)

    def at(self, progress: float) -> float:
        """The factor at `progress` in [0, 1]."""
        if self.even:
            (_, first), (_, last) = self.points
            return first + (last - first) * progress
        return [value for start, value in self.points if start <= progress][-1]


def _written(value: float) -> str:
    return str(value).removesuffix(".0")
