"""A suite's results for people: one page of videos and tables, the tables as CSV and LaTeX, plots as PNG."""

import base64
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from dreamvideo.bench import glance, markdown
from dreamvideo.bench.diversity import diverse
from dreamvideo.bench.orders import Order, orders
from dreamvideo.bench.results import Result, Store, Table, read_rows, tables
from dreamvideo.bench.statistics import Summary
from dreamvideo.bench.suite import Comparison, Published, Suite
from dreamvideo.concept import read_concept
from dreamvideo.errors import BadInput
from dreamvideo.files import write_text
from dreamvideo.media import crop_wide, read_clip, read_image
from dreamvideo.metrics.lpips import Lpips, LpipsDiversity
from dreamvideo.plots import Point, scatter

__all__ = ["write"]

TEXT, FIDELITY = "CLIP-T", ("DINO-I", "CLIP-I", "Motion fidelity")
"""What plots set against each other: text alignment, and the first of these that there is."""

_LOOK, _LOOKS = (80, 80), 4  # height and width in pixels; of each concept so many


@dataclass(frozen=True)
class _Group:
    """The videos of one prompt of one concept (or two), by seed, then by entry."""

    heading: str
    prompt: str
    seeds: Sequence[tuple[int, Sequence[Result]]]


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A comparison on the page."""

    title: str
    table: Table
    published: Published | None
    orders: Sequence[Order]
    groups: Sequence[_Group]
    pictures: Sequence[Path]
    """The plots and the contact sheet, as files."""
    plots: Sequence[str]
    """As data URIs."""
    absent: Sequence[str]
    """Entries that were not planned, because their base was not there."""
    looks: Mapping[str, Sequence[str]]
    """Concept -> what it was learned from, small, as data URIs; where the data are here."""


def write(suite: Suite, store: Store, to: Path | None = None) -> list[Path]:
    """Write the report to a folder, by default beside the suite's plan.

    report.html needs no other file: videos and plots are in it. report.md has a plot and a contact sheet for each
    comparison beside it, as PNG. The numbers alone: cells.csv, summary.csv, tables.tex. Diversity over seeds is
    measured here, where the suite names LPIPS's weights.

    Raises:
        BadInput: the suite was not run here, or nothing of it is there yet.
    """
    plan = store.suite(suite.name)
    rows = read_rows(plan / "plan.json")
    found = [table for table in tables(rows, store, more=_more(suite, store)) if table.comparison in suite.comparisons]
    if not found:
        raise BadInput(f"{plan}: no cell of {suite.name} is there yet; `dreamvideo bench run {suite.name}` makes them")
    folder = plan if to is None else to
    folder.mkdir(parents=True, exist_ok=True)
    planned = {(row.comparison, row.entry) for row in rows}
    sections = [_section(suite, table, store, folder, planned) for table in found]
    keys = dict.fromkeys(result.row.key for table in found for result in table.results)
    environment = Environment(loader=PackageLoader("dreamvideo"), autoescape=select_autoescape(), trim_blocks=True)
    page = environment.get_template("bench.html").render(
        suite=suite,
        sections=sections,
        videos={key: base64.b64encode(store.video(key).read_bytes()).decode() for key in keys},
        metrics={name: says for table in found for r in table.results for name, says in r.cell["metrics"].items()},
        versions=found[0].results[0].cell["versions"],
    )
    files = {
        "report.html": page,
        "report.md": markdown.page(suite, [(s.table, s.pictures, s.absent) for s in sections]),
        "cells.csv": _cells(found),
        "summary.csv": _summaries(found),
        "tables.tex": "\n".join(_latex(suite.comparisons[table.comparison], table) for table in found),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    return [*(folder / name for name in files), *(picture for section in sections for picture in section.pictures)]


def _section(suite: Suite, table: Table, store: Store, folder: Path, planned: Set[tuple[str, str]]) -> _Section:
    """A comparison, its pictures written."""
    comparison = suite.comparisons[table.comparison]
    looks = dict(_looks(suite.folder, comparison))
    plots, videos = list(_plots(table, folder)), folder / f"{table.comparison}-videos.png"
    return _Section(
        title=comparison.title,
        table=table,
        published=comparison.published,
        orders=list(orders(table, comparison.published)),
        groups=list(_groups(table)),
        pictures=[*plots, glance.draw(videos, table, store, looks, title=comparison.title)],
        plots=[_data_uri(plot.read_bytes()) for plot in plots],
        absent=[entry for entry in comparison.entries if (table.comparison, entry) not in planned],
        looks={name: [_data_uri(_png(look)) for look in own] for name, own in looks.items()},
    )


def _more(suite: Suite, store: Store) -> Callable[[tuple[Result, ...]], tuple[Result, ...]] | None:
    weights = suite.encoders.get("lpips")
    return None if weights is None else partial(diverse, store=store, metric=LpipsDiversity(Lpips.load(weights)))


def _groups(table: Table) -> Iterator[_Group]:
    order = {unit: number for number, unit in enumerate(dict.fromkeys(result.row.unit for result in table.results))}
    results = sorted(table.results, key=lambda result: (order[result.row.unit], result.row.seed))
    for (subject, motion, prompt), group in groupby(results, key=lambda result: result.row.unit):
        seeds = [(seed, list(own)) for seed, own in groupby(group, key=lambda result: result.row.seed)]
        yield _Group(" and ".join(filter(None, (subject, motion))), prompt, seeds)


def _plots(table: Table, folder: Path) -> Iterator[Path]:
    fidelity = next((name for name in FIDELITY if name in table.metrics), None)
    if fidelity is None or TEXT not in table.metrics:
        return
    points = {
        entry: Point(own[TEXT].mean, own[fidelity].mean, own[TEXT].spread or 0.0, own[fidelity].spread or 0.0)
        for entry, own in table.summaries.items()
        if TEXT in own and fidelity in own
    }
    if points:
        yield scatter(folder / f"{table.comparison}.png", points, x=TEXT, y=fidelity)


def _looks(folder: Path, comparison: Comparison) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Some pictures of every subject, and some frames of every motion's first clip."""
    places = [
        *(f"subjects/{name}" for name in comparison.subjects),
        *(f"motions/{name}" for name in comparison.motions),
    ]
    for place in filter(lambda place: (folder / place).is_dir(), places):
        examples = read_concept(folder / place, name=place).examples
        if examples[0].kind == "image":
            pictures = [crop_wide(read_image(example.path).pixels, _LOOK) for example in examples[:_LOOKS]]
        else:
            frames = read_clip(examples[0].path, size=_LOOK).frames
            pictures = [frames[len(frames) * number // _LOOKS] for number in range(_LOOKS)]
        yield Path(place).name, pictures


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


# -- tables -----------------------------------------------------------------------------------------------------------


def _cells(found: Sequence[Table]) -> str:
    """A line for every cell."""
    metrics = list(dict.fromkeys(name for table in found for name in table.metrics))
    lines = [["comparison", "entry", "subject", "motion", "prompt", "seed", "cell", *metrics]]
    for table in found:
        for result in table.results:
            row, scores = result.row, result.cell["scores"]
            values = [scores.get(name, "") for name in metrics]
            cell = (row.comparison, row.entry, row.subject, row.motion, result.cell["prompt"], row.seed, row.key)
            lines.append([*("" if part is None else part for part in cell), *values])
    return _csv(lines)


def _summaries(found: Sequence[Table]) -> str:
    """A line for every entry and metric."""
    paired = ("difference", "difference_low", "difference_high", "wins", "units")
    lines: list[list[object]] = [["comparison", "entry", "metric", "mean", "seed_spread", "videos", *paired]]
    for table in found:
        for entry, own in table.summaries.items():
            for metric, summary in own.items():
                d = summary.difference
                values = [""] * len(paired) if d is None else [d.mean, d.low, d.high, d.wins, d.units]
                spread = "" if summary.spread is None else summary.spread
                lines.append([table.comparison, entry, metric, summary.mean, spread, summary.videos, *values])
    return _csv(lines)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _latex(comparison: Comparison, table: Table) -> str:
    """A table of means, with the seeds' spread; what a paper reports beneath, under its own base's name."""
    arrows = {True: r"$\uparrow$", False: r"$\downarrow$"}
    names = [f"{_escaped(name)} {arrows[up]}" for name, up in table.metrics.items()]
    lines = [
        "\\begin{table}",
        f"\\caption{{{_escaped(comparison.title)}}}",
        f"\\begin{{tabular}}{{l{'c' * len(names)}}}",
        "\\toprule",
        " & ".join(["", *names]) + r" \\",
        "\\midrule",
    ]
    for entry, own in table.summaries.items():
        lines.append(" & ".join([_escaped(entry), *(_number(own.get(name)) for name in table.metrics)]) + r" \\")
    if (published := comparison.published) is not None:
        heading = _escaped(f"As published ({published.table}), on another base: {published.base}")
        lines += ["\\midrule", f"\\multicolumn{{{len(names) + 1}}}{{l}}{{{heading}}} \\\\"]
        for entry, values in published.rows.items():
            cells = [f"{values[name]:.3f}" if name in values else "--" for name in table.metrics]
            lines.append(" & ".join([_escaped(entry), *cells]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def _number(summary: Summary | None) -> str:
    if summary is None:
        return "--"
    spread = "" if summary.spread is None else f" \\pm {summary.spread:.3f}"
    return f"${summary.mean:.3f}{spread}$"


def _escaped(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text
