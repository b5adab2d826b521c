"""A suite's tables as a page of Markdown, for where videos cannot be shown."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dreamvideo.bench.orders import orders
from dreamvideo.bench.results import Cost, Table
from dreamvideo.bench.statistics import Summary
from dreamvideo.bench.suite import Comparison, Suite

__all__ = ["page"]

_HEAD = """# {name}

{summary}

Written by `dreamvideo bench report {name}`; base {base}; {versions}.

A number is the mean over all videos, ± the standard deviation of the seeds' means. Beneath it is the difference to the
first row with its 95 % interval (paired bootstrap over prompts and concepts, the seeds averaged), in bold where there
are six of these or more and no difference lies outside the interval. Seconds and memory are of learning alone, one
thread a process; other work on the machine makes seconds longer.
"""


def page(suite: Suite, comparisons: Sequence[tuple[Table, Sequence[Path], Sequence[str]]]) -> str:
    """The page.

    Args:
        comparisons: of each its table, the PNGs that lie beside the page, and the entries whose base was not there.
    """
    first = comparisons[0][0].results[0]
    versions = ", ".join(f"{name} {number}" for name, number in first.cell["versions"].items())
    parts = [_HEAD.format(name=suite.name, summary=suite.summary, base=suite.base, versions=versions)]
    for table, pictures, absent in comparisons:
        comparison = suite.comparisons[table.comparison]
        parts += [f"## {comparison.title}", "", _counts(comparison, table, absent), "", *_table(comparison, table), ""]
        parts += [*_orders(comparison, table)]
        parts += [f"![{comparison.title}]({picture.name})\n" for picture in pictures]
    return "\n".join(parts).rstrip() + "\n"


def _counts(comparison: Comparison, table: Table, absent: Sequence[str]) -> str:
    asked = [
        f"{len(found)} {noun}{'' if len(found) == 1 else 's'}"
        for noun, found in (
            ("subject", comparison.subjects),
            ("motion", comparison.motions),
            ("prompt", comparison.prompts),
            ("seed", comparison.seeds),
        )
        if found
    ]
    missing = f" {table.missing} cells are missing." if table.missing else ""
    without = f" Their bases were not there: {', '.join(absent)}." if absent else ""
    return f"{', '.join(asked)}.{missing}{without}"


def _table(comparison: Comparison, table: Table) -> Iterator[str]:
    costs = ("steps", "parameters", "seconds", "memory, MiB") if table.costs else ()
    names = [f"{name} {'↑' if up else '↓'}" for name, up in table.metrics.items()]
    yield _line(["", *names, *costs])
    yield "|" + "---|" * (1 + len(names) + len(costs))
    for entry, own in table.summaries.items():
        cost = _cost(table.costs.get(entry)) if costs else []
        yield _line([entry, *(_number(own.get(name)) for name in table.metrics), *cost])
    if comparison.published is not None:
        for entry, values in comparison.published.rows.items():
            numbers = [f"*{values[name]:.3f}*" if name in values else "" for name in table.metrics]
            label = f"*{entry}, as published ({comparison.published.table}, {comparison.published.base})*"
            yield _line([label, *numbers, *[""] * len(costs)])


def _orders(comparison: Comparison, table: Table) -> Iterator[str]:
    """Where the paper's order holds, and where not."""
    found = list(orders(table, comparison.published))
    if not found:
        return
    first = next(iter(table.summaries))
    yield f"Against {first}, is the order that {comparison.published.table} reports seen here?\n"
    yield _line(["metric", "entry", "published", "here", "order"])
    yield "|" + "---|" * 5
    for order in found:
        d = order.measured
        here = f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        yield _line([order.metric, order.entry, f"{order.published:+.3f}", here, order.verdict])
    yield ""


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return [""] * 4
    seconds = "" if cost.seconds is None else f"{cost.seconds:.0f}"
    memory = "" if cost.peak_memory is None else f"{cost.peak_memory / 2**20:.0f}"
    return [f"{cost.steps:,.0f}", f"{cost.parameters:,.0f}", seconds, memory]


def _number(summary: Summary | None) -> str:
    if summary is None:
        return ""
    spread = "" if summary.spread is None else f" ± {summary.spread:.3f}"
    d = summary.difference
    if d is None:
        return f"{summary.mean:.3f}{spread}"
    interval = f" [{d.low:+.3f}, {d.high:+.3f}]" if d.units > 1 else ""
    mark = "**" if d.certain else ""
    return f"{summary.mean:.3f}{spread}<br>{mark}{d.mean:+.3f}{interval}{mark}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
