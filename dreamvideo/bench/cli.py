"""`dreamvideo bench`: run a suite, report on it. Each command is a few lines; torch is imported where it is needed."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamvideo.errors import RunFailed
from dreamvideo.options import Device, Json
from dreamvideo.terminal import say, table

__all__ = ["app"]

app = typer.Typer(help="Compare methods: suites, their runner, the report.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite's name, or a .toml file.")]
Out = Annotated[Path, typer.Option(help="Folder of results, which suites may share.")]
RESULTS = Path("runs/bench")


@app.command("list")
def list_(json: Json = False) -> None:
    """The suites that come with the package."""
    from dreamvideo.bench import suite

    suites = [suite.read(name) for name in suite.shipped()]
    found = [{"name": each.name, "base": each.base, "videos": each.size, "summary": each.summary} for each in suites]
    say(found, table([(s["name"], s["base"], f"{s['videos']} videos", s["summary"]) for s in found]), as_json=json)


@app.command()
def run(
    reference: Reference,
    out: Out = RESULTS,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each computes with one thread.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="In a Ray cluster: at RAY_ADDRESS, or a new one here.")] = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the frozen weights: fp32, bf16, fp16, int8, fp8, auto.")] = "auto",
    json: Json = False,
) -> None:
    """Make what is missing of a suite: learn its concepts, make its videos, measure them."""
    from dreamvideo.bench import plan, results, runner, suite
    from dreamvideo.bench.workers import LocalWorkers, RayWorkers

    asked = suite.read(reference)
    planned, store = plan.plan(asked, device=device, dtype=dtype), results.Store(out)
    for why in planned.missing.values():
        typer.echo(why, err=True)
    results.write_rows(store.suite(asked.name) / "plan.json", planned.rows)
    with (RayWorkers if ray else LocalWorkers)(workers) as pool:
        failed = runner.run(planned.cells.values(), store, pool, on_progress=_tell)
    made = sum(cell.done(store) for cell in planned.cells.values())
    told = {
        "suite": asked.name,
        "cells": len(planned.cells),
        "there": made,
        "failed": failed,
        "missing": planned.missing,
    }
    say(told, f"{store.folder}: {made} of {len(planned.cells)} cells of {asked.name} are there", as_json=json)
    troubles = [f"no cells on {base}, which is not here" for base in planned.missing]
    if failed:
        troubles.append(f"{len(failed)} cells could not be made: {'; '.join(sorted(set(failed.values())))}")
    if troubles:
        raise RunFailed(f"{'; '.join(troubles)}; the same command tries again")


@app.command()
def report(
    reference: Reference,
    out: Out = RESULTS,
    to: Annotated[Path | None, typer.Option(help="Folder for the report; by default OUT/SUITE.")] = None,
    json: Json = False,
) -> None:
    """Write the tables, plots, contact sheets and the page of videos of what is there."""
    from dreamvideo.bench import report as writer
    from dreamvideo.bench import results, suite

    asked, store = suite.read(reference), results.Store(out)
    files = [str(file) for file in writer.write(asked, store, to)]
    say({"files": files}, "\n".join(files), as_json=json)


@app.command()
def fetch(reference: Reference, json: Json = False) -> None:
    """Check a suite's outside data against its manifest, and say how to get what is missing."""
    from dreamvideo.bench import manifest, suite

    asked = suite.read(reference)
    findings = manifest.check(asked)
    lines = [(f.state, f.place, f.found) for f in findings]
    gaps = Counter(gap for finding in findings for gap in finding.unchecked)
    unchecked = ", ".join(f"{gap} of {count} folders" for gap, count in gaps.items())
    advice = [
        f"\n{name}: {asked.sources[name].address}\n{asked.sources[name].how}" for name in manifest.wanted(findings)
    ]
    shown = table(lines) if lines else f"{asked.name} needs no outside data"
    unknown = [f"\nunchecked, because the manifest has no record: {unchecked}"] if gaps else []
    say([f.plain() for f in findings], "\n".join([shown, *unknown, *advice]), as_json=json)


def _tell(progress: Any) -> None:
    """One line for every task that ended, on standard error."""
    parts = [f"{done} of {count} {sort}s" for sort, (done, count) in progress.done.items()]
    left = progress.seconds_left
    time = (
        "" if left is None else f", about {left / 60:.0f} minutes left" if left >= 90 else f", about {left:.0f} s left"
    )
    trouble = "" if progress.trouble is None else f"  ({progress.task.key}: {progress.trouble})"
    typer.echo(f"{', '.join(parts)}{time}{trouble}", err=True)
