"""What a comparison's numbers are worth: spread over seeds, paired differences with intervals, wins.

What is paired and drawn again is a unit: a prompt of a concept (or of two), its seeds averaged. The same unit is asked
of every entry, so that hard concepts are hard for all and fall out of the difference.
"""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Difference", "Score", "Summary", "bootstrap", "summarise"]

DRAWS = 10_000
LEVEL = 0.95
FEWEST = 6
"""Of fewer units an interval says nothing: five fair coins fall on one side in 6 % of all throws."""


@dataclass(frozen=True)
class Score:
    """One number of one video."""

    unit: Hashable
    seed: int
    value: float


@dataclass(frozen=True)
class Difference:
    """Of two entries' means: this one's less the other's."""

    mean: float
    low: float
    high: float
    """Between them lies the mean in 95 % of all draws."""
    wins: float
    """Share of units where this one is better; a tie counts half."""
    units: int

    @property
    def certain(self) -> bool:
        """No difference at all is outside the interval, and there are enough units to say so."""
        return self.units >= FEWEST and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Summary:
    """A metric of an entry."""

    mean: float
    spread: float | None
    """Standard deviation of the seeds' means; None with one seed."""
    videos: int
    difference: Difference | None
    """To the comparison's first entry; None for itself, or where the two share no unit."""


def summarise(scores: Sequence[Score], others: Sequence[Score] | None, *, higher_is_better: bool) -> Summary:
    """Mean, spread, and the difference to `others`.

    Args:
        scores: at least one.
        others: the first entry's; None for the first entry itself.
    """
    seeds: dict[int, list[float]] = defaultdict(list)
    for score in scores:
        seeds[score.seed].append(score.value)
    means = [statistics.fmean(values) for values in seeds.values()]
    return Summary(
        mean=statistics.fmean(score.value for score in scores),
        spread=statistics.stdev(means) if len(means) > 1 else None,
        videos=len(scores),
        difference=None if others is None else _difference(scores, others, higher_is_better=higher_is_better),
    )


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean of `values`, by the percentiles of the means of draws with replacement.

    Efron & Tibshirani 1993, section 13.3: 10,000 draws, 2.5 % left out on either side.
    """
    samples, rng = np.asarray(values), np.random.default_rng(seed)
    # A value's share in a draw is how often it was drawn.
    counts = rng.multinomial(len(samples), np.full(len(samples), 1 / len(samples)), size=DRAWS)
    low, high = np.quantile(counts @ samples / len(samples), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _difference(scores: Sequence[Score], others: Sequence[Score], *, higher_is_better: bool) -> Difference | None:
    mine, theirs = _pairs(scores), _pairs(others)
    units: dict[Hashable, list[float]] = defaultdict(list)
    for unit, seed in mine.keys() & theirs.keys():
        units[unit].append(mine[unit, seed] - theirs[unit, seed])
    if not units:
        return None
    # Sorted, so that the draws are the same whatever the order of sets.
    differences = sorted(statistics.fmean(values) for values in units.values())
    sign = 1 if higher_is_better else -1
    wins = statistics.fmean(0.5 if value == 0 else float(sign * value > 0) for value in differences)
    low, high = bootstrap(differences)
    return Difference(statistics.fmean(differences), low, high, wins, len(differences))


def _pairs(scores: Iterable[Score]) -> Mapping[tuple[Hashable, int], float]:
    return {(score.unit, score.seed): score.value for score in scores}
