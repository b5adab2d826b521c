"""Write docs/speed.md from the JSON that learn.py, sample.py, memory.py and scale.py have left in docs/speed.

python benchmarks/speed.py [--out FOLDER]
"""

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamvideo.files import write_text

OUT = Path(__file__).parents[1] / "docs" / "speed"
HEAD = """# Speed and memory

Written by `benchmarks/speed.py` from the files in `speed/`; the first lines of each script under `benchmarks/` say how
its numbers are made. Both sides of every ratio ran in turns in one process.
"""
BYTES = {
    "frozen": "frozen",
    "learned": "learned",
    "passing": "passing",
    "estimate_gpu": "estimate on a GPU",
    "estimate": "estimate here",
    "measured": "measured here",
}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "learn": {
        "ours": "ours, s",
        "plain": "plain, s",
        "ratio": "ratio",
        "stage_ours": "stage, ours, s",
        "stage_plain": "stage, plain, s",
        "stage_ratio": "ratio of stages",
        "apart": "ours from plain",
        "plain_apart": "plain from plain",
    },
    "recipe": {
        "updates_paper": "updates, paper",
        "updates_recipe": "updates, recipe",
        "stage_plain": "the paper's, plain, s",
        "recipe_ours": "the recipe, ours, s",
        "recipe_ratio": "ratio",
    },
    "profile": {
        "gflop": "GFLOP, ours",
        "gflop_plain": "GFLOP, plain",
        "ratio_gflop": "ratio",
        "floor": "floor, s",
        "of_floor": "floor as part of our time",
    },
    "compile": {
        "update": "update, s",
        "gain": "not compiled to this",
        "ratio": "plain to this",
        "cold": "compiling, s",
        "cold_pays_after": "pays after, updates",
        "warm": "again from disk, s",
        "warm_pays_after": "pays after, updates",
    },
    "memory": BYTES,
    "thrift": BYTES,
}
TITLES = {
    "learn": "Learning: seconds an update, and a stage of the paper's length",
    "recipe": "Learning by a recipe of its own",
    "profile": "Where an update's time goes",
    "compile": "Learning with torch.compile",
    "sample": "Sampling",
    "approximate": "Options that approximate, on EmojiWorld",
    "memory": "Memory while a motion is learned, MiB",
    "thrift": "Memory while a video is sampled, MiB",
    "scale": "How cost grows, seconds",
}

NOTES = {
    "learn": "A stage is what is done once and as many updates as the paper's. The last two columns are how far apart "
    "what was learned is, as a part of how far it came: ours from plain, and of four plain runs with other orders of "
    "summation the two that are farthest. `full` has ModelScopeT2V's size and random weights; in bf16 the plain side "
    "has float32 weights under autocast.",
    "recipe": "A base that has recipes of its own takes fewer updates, at higher rates, than the paper's procedure. "
    "What is learned by them, there a motion from three clips, is compared in "
    "[results/recipes](results/recipes/report.md).",
    "profile": "GFLOP are those of the products and convolutions of an update. The floor is what ours would take at "
    "the rate of one large matrix product. Then, what part of our time goes to which operations.",
    "compile": "With every transformer block compiled, or the whole denoiser: at first, and when torch has the kernels "
    "on disk. All sides ran in turns, in a run of their own. An empty place: it never pays.",
    "sample": "The same noise, steps and weights. Apart: the largest difference of a pixel of [-1, 1].",
    "approximate": "Drift: the mean difference of a pixel from the exact video, of 1.",
    "memory": "The estimate is what the preflight says before any work is done. On a CPU it has a larger "
    "margin, for what the C library's allocator holds; measured is there by how much the process grew. `full` has "
    "ModelScopeT2V's size, in bf16; where there was not the memory that a preset is for, it is only estimated.",
}
"""What the columns of a table mean, where their names do not say it."""


def titled(kind: str) -> Iterator[str]:
    yield from (f"## {TITLES[kind]}", "")
    if kind in NOTES:
        yield from (*textwrap.wrap(NOTES[kind], 120), "")


def table(rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str], unit: float = 1.0) -> Iterator[str]:
    """Named rows under the columns that they have."""
    there = [key for key in columns if any(key in row for row in rows.values())]
    yield "| | " + " | ".join(columns[key] for key in there) + " |"
    yield "|---|" + "---|" * len(there)
    for name, row in rows.items():
        yield f"| {name} | " + " | ".join(f"{row[key] / unit:.4g}" if key in row else "" for key in there) + " |"


def section(kind: str, results: Mapping[str, Any], place: str) -> Iterator[str]:
    """The tables of one file."""
    results = dict(results)
    approximate = results.pop("approximate", None)
    for base, rows in results.items():
        yield from ("", f"**{base}**", "")
        if kind == "sample":
            yield from table({base: rows}, {key: key.replace("_", " ") for key in rows})
        elif kind == "scale":
            for axis, points in rows.items():
                yield from table({axis: points}, {point: point for point in points})
                yield ""
            yield f"![](speed/{place}-{base}.png)"
        else:
            yield from table(rows, COLUMNS[kind], 2**20 if COLUMNS[kind] is BYTES else 1.0)
    stages = {f"{base}, {stage}": row for base, rows in results.items() for stage, row in rows.items()
              if kind == "learn"}  # fmt: skip
    if shorter := {name: row for name, row in stages.items() if "recipe_ours" in row}:
        yield from ("", *titled("recipe"), *table(shorter, COLUMNS["recipe"]))
    if profiled := {name: row for name, row in stages.items() if "shares" in row}:
        shares = {name: row["shares"] for name, row in profiled.items()}
        yield from ("", *titled("profile"), *table(profiled, COLUMNS["profile"]), "")
        yield from table(shares, {key: key for row in shares.values() for key in row})
    if approximate is not None:
        yield from ("", *titled("approximate"))
        yield from table(approximate, {key: key for key in next(iter(approximate.values()))})


def page(files: Sequence[Path]) -> str:
    lines = [HEAD]
    for file in files:
        told = json.loads(file.read_text(encoding="utf-8"))
        kind = file.stem.partition("-")[0]
        versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
        lines += [*titled(kind), f"{told['hardware']}, {told['threads']} threads; {versions}."]
        lines += [*section(kind, told["results"], file.stem), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the JSON; the page lies beside it")
    out = parser.parse_args().out
    kinds = ("learn", "compile", "sample", "memory", "thrift", "scale")
    files = [out / f"{kind}-{place}.json" for place in ("cpu", "gpu") for kind in kinds]
    write_text(out.with_suffix(".md"), page([file for file in files if file.is_file()]))


if __name__ == "__main__":
    main()
