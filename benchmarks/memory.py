"""Peak memory of learning with every preset: what the preflight says, and what was measured.

    python benchmarks/memory.py [--base emojiworld mid] [--out FOLDER]

Every preset learns the motion in a process of its own, for two updates. Measured is what CUDA's allocator held at most,
or on a CPU by how much the process grew after its base was loaded. `full` on a CPU is estimated alone, from shapes.
"""

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import psutil
import torch

from dreamvideo import memory, train
from dreamvideo.recipe import resolve

METHOD = "dreamvideo-motion"


def measure(name: str, preset: str, device: str, threads: int) -> dict[str, float]:
    """Bytes: the estimate's parts and, where there are weights, what learning took."""
    torch.set_num_threads(threads)
    shapes = name == "full" and device == "cpu"
    base = common.load(name, device, empty=shapes)
    with TemporaryDirectory() as folder:
        concept = common.concepts(Path(folder), base)[METHOD]
        settings = {"train": {"steps": 2, "batch": 1, **memory.PRESETS[preset]}}
        recipe = resolve(METHOD, base, concept, recipe="paper", settings=[settings])
        (stage,) = recipe.method.stages(base, concept, seed=0)
        need = memory.estimate(recipe, base, concept, stage)
        told = {"frozen": need.frozen, "learned": need.learned, "passing": need.passing, "estimate": need.total}
        if shapes:
            return told
        before = psutil.Process().memory_info().rss
        train.fit(recipe, base, concept, Path(folder) / "run")
    if device == "cpu":
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        return {**told, "measured": grown + need.frozen}
    return {**told, "measured": torch.cuda.max_memory_allocated()}


def alone(options: argparse.Namespace, name: str, preset: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, preset, options.device, options.threads).result()


def main() -> None:
    options = common.options(__doc__, bases=("emojiworld", "mid", "full")).parse_args()
    results: dict[str, Any] = {
        name: {preset: alone(options, name, preset) for preset in memory.PRESETS} for name in options.base
    }
    common.write(options.out, "memory", results, options.device)


if __name__ == "__main__":
    main()
