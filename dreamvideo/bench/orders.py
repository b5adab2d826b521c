"""Does the order that a paper reports hold on another base? Entry by entry against the first, with the interval."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dreamvideo.bench.results import Table
from dreamvideo.bench.statistics import Difference
from dreamvideo.bench.suite import Published

__all__ = ["Order", "orders"]


@dataclass(frozen=True)
class Order:
    """Which of two entries has the higher value of a metric, in a paper and here."""

    metric: str
    entry: str
    published: float
    """The paper's value of the entry less that of the comparison's first entry."""
    measured: Difference

    @property
    def verdict(self) -> Literal["holds", "reversed", "open"]:
        """Open where no difference lies inside the interval here, or the paper has none."""
        if not self.measured.certain or self.published == 0:
            return "open"
        return "holds" if (self.measured.mean > 0) == (self.published > 0) else "reversed"


def orders(table: Table, published: Published | None) -> Iterator[Order]:
    """Every metric and entry that the paper and the table both set against the first entry."""
    first = next(iter(table.summaries))
    theirs = {} if published is None else published.rows
    for metric in table.metrics:
        for entry, own in table.summaries.items():
            difference = own[metric].difference if metric in own else None
            values = [theirs.get(name, {}).get(metric) for name in (entry, first)]
            if difference is not None and None not in values:
                yield Order(metric, entry, values[0] - values[1], difference)
