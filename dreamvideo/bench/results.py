"""Where results lie, and what they say when they are read back; that takes neither a base nor torch.

OUT/learned/KEY/       the run of a concept, shared by every cell that needs it
OUT/cells/KEY.json     a cell: what was asked, and its scores       KEY.mp4   its video
OUT/SUITE/             a suite's plan and its report

A key is a hash of everything that determines the result, and the file has nothing else in it: the same cell gives the
same bytes, whoever made it. What took how long is in the runs.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dreamvideo.bench.statistics import Score, Summary, summarise
from dreamvideo.errors import BadInput
from dreamvideo.files import write_json

__all__ = ["Cost", "Result", "Row", "Store", "Table", "Unit", "read_rows", "tables", "write_rows"]


@dataclass(frozen=True)
class Store:
    """Where results are."""

    folder: Path

    def learned(self, key: str) -> Path:
        return self.folder / "learned" / key

    def cell(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"

    def video(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.mp4"

    def suite(self, name: str) -> Path:
        return self.folder / name


class Unit(NamedTuple):
    """What every entry is asked alike."""

    subject: str | None
    motion: str | None
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where a cell stands in a suite."""

    comparison: str
    entry: str
    subject: str | None
    motion: str | None
    prompt: str
    """As the comparison has it, with braces."""
    seed: int
    key: str

    @property
    def unit(self) -> Unit:
        return Unit(self.subject, self.motion, self.prompt)


@dataclass(frozen=True)
class Result:
    """A row with its cell's file."""

    row: Row
    cell: Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What an entry's concepts take to learn: means over concepts, both halves together."""

    steps: float
    """Of all stages."""
    parameters: float
    seconds: float | None
    """None where the runs are not here."""
    peak_memory: float | None
    """Bytes, of the half that takes more."""


@dataclass(frozen=True)
class Table:
    """A comparison's results."""

    comparison: str
    results: tuple[Result, ...]
    metrics: Mapping[str, bool]
    """Metric -> whether higher is better."""
    summaries: Mapping[str, Mapping[str, Summary]]
    """Entry -> metric -> summary; what does not apply is absent."""
    costs: Mapping[str, Cost]
    """Of the entries that learn."""
    missing: int
    """Cells that are not there."""


def write_rows(path: Path, rows: tuple[Row, ...]) -> None:
    """A plan's rows: with the cells' files, all that a report needs."""
    write_json(path, [asdict(row) for row in rows])


def read_rows(path: Path) -> tuple[Row, ...]:
    """Raises:
    BadInput: the suite was not run here.
    """
    try:
        return tuple(Row(**row) for row in json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; `dreamvideo bench run` makes it") from error


def tables(
    rows: tuple[Row, ...],
    store: Store,
    *,
    more: Callable[[tuple[Result, ...]], tuple[Result, ...]] | None = None,
) -> Iterator[Table]:
    """A table for every comparison of which a cell is there, in the rows' order. `more` adds to a comparison's results
    what no cell has by itself."""
    for comparison in dict.fromkeys(row.comparison for row in rows):
        these = [row for row in rows if row.comparison == comparison]
        there = {row.key for row in these if store.cell(row.key).exists()}
        results = tuple(
            Result(row, json.loads(store.cell(row.key).read_text(encoding="utf-8")))
            for row in these
            if row.key in there
        )
        if results:
            missing = len(these) - len(results)
            yield _table(comparison, these[0].entry, more(results) if more else results, store, missing=missing)


def _table(comparison: str, first: str, results: tuple[Result, ...], store: Store, *, missing: int) -> Table:
    metrics = {
        name: protocol["higher_is_better"] for result in results for name, protocol in result.cell["metrics"].items()
    }
    entries = {
        entry: [result for result in results if result.row.entry == entry]
        for entry in dict.fromkeys(result.row.entry for result in results)
    }
    scores = {
        entry: {name: found for name in metrics if (found := _scores(own, name))} for entry, own in entries.items()
    }
    reference = scores.get(first, {})
    return Table(
        comparison=comparison,
        results=results,
        metrics={name: up for name, up in metrics.items() if any(name in own for own in scores.values())},
        summaries={
            entry: {
                name: summarise(
                    values, None if entry == first else reference.get(name, []), higher_is_better=metrics[name]
                )
                for name, values in own.items()
            }
            for entry, own in scores.items()
        },
        costs={entry: cost for entry, own in entries.items() if (cost := _cost(own, store)) is not None},
        missing=missing,
    )


def _scores(results: list[Result], metric: str) -> list[Score]:
    return [
        Score(result.row.unit, result.row.seed, result.cell["scores"][metric])
        for result in results
        if metric in result.cell["scores"]
    ]


def _cost(results: list[Result], store: Store) -> Cost | None:
    """By role, because a concept of one role is shared by cells with different ones of the other."""
    learned = {concept["key"]: concept for result in results for concept in result.cell["concepts"]}
    roles: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]] = {}
    for key, concept in learned.items():
        record = store.learned(key) / "run.json"
        run = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
        roles.setdefault(concept["role"], []).append((concept, run))
    if not roles:
        return None
    halves = [
        (
            statistics.fmean(sum(concept["steps"].values()) for concept, _ in own),
            statistics.fmean(concept["parameters"] for concept, _ in own),
            [(run["seconds"], run["peak_memory_bytes"]) for _, run in own if run is not None],
        )
        for own in roles.values()
    ]
    timed = all(runs for *_, runs in halves)
    return Cost(
        steps=sum(steps for steps, *_ in halves),
        parameters=sum(parameters for _, parameters, _ in halves),
        seconds=sum(statistics.fmean(seconds for seconds, _ in runs) for *_, runs in halves) if timed else None,
        peak_memory=max(statistics.fmean(memory for _, memory in runs) for *_, runs in halves) if timed else None,
    )
