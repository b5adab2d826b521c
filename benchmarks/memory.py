"""Peak memory of learning and of sampling with every preset: what the preflight says, and what was measured.

    python benchmarks/memory.py [--base emojiworld mid] [--out FOLDER]

Every preset learns the motion in a process of its own, for two updates, and samples it in another, for two steps; of
presets with the same settings one does.
Measured is what CUDA's allocator held at most, or on a CPU by how much the process grew after its base was loaded.
`full` is in half precision; on a CPU with less free memory than the preset is for, it is estimated alone, from shapes.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import psutil
import torch

from dreamvideo import memory, sample, thrift, train
from dreamvideo.adapters.file import ConceptFile, Meta
from dreamvideo.adapters.weight import Weight
from dreamvideo.bases.base import VideoBase
from dreamvideo.memory import Need
from dreamvideo.recipe import resolve
from dreamvideo.sample import Composition, SampleConfig

METHOD = "dreamvideo-motion"


def learning(name: str, preset: str, device: str, threads: int, *, empty: bool) -> dict[str, float]:
    """Bytes of two updates."""
    base = load(name, device, threads, empty=empty)
    with TemporaryDirectory() as folder:
        concept = common.concepts(Path(folder), base)[METHOD]
        settings = {"train": {"steps": 2, "batch": 1, **memory.PRESETS[preset]}}
        recipe = resolve(METHOD, base, concept, recipe="paper", settings=[settings])
        (stage,) = recipe.method.stages(base, concept, seed=0)
        need = memory.estimate(recipe, base, concept, stage)
        return told(base, need, None if empty else lambda: train.fit(recipe, base, concept, Path(folder) / "run"))


def sampling(name: str, preset: str, device: str, threads: int, *, empty: bool) -> dict[str, float]:
    """Bytes of two steps with the motion's adapters, and of decoding."""
    base = load(name, device, threads, empty=empty)
    with TemporaryDirectory() as folder:
        concept = common.concepts(Path(folder), base)[METHOD]
        (stage,) = resolve(METHOD, base, concept, recipe="paper").method.stages(base, concept, seed=0)
    meta = Meta(
        name="turn", role="motion", family=base.family, base=base.name, fingerprint=base.fingerprint, method=METHOD,
        created_by="benchmark",
    )  # fmt: skip
    composition = Composition(concepts=[(ConceptFile(meta, stage.learn), Weight())])
    config, saving = SampleConfig(steps=2).filled(base.defaults), thrift.PRESETS[preset]
    need = thrift.estimate(base, config, list(stage.learn.values()), saving)

    def run() -> None:
        base.decode(sample.generate(base, "a car turning", composition, config, seed=0, thrift=saving))

    return told(base, need, None if empty else run)


def load(name: str, device: str, threads: int, *, empty: bool) -> VideoBase:
    torch.set_num_threads(threads)
    return common.load(name, device, half=name == "full", empty=empty)


def told(base: VideoBase, need: Need, run: Callable[[], object] | None) -> dict[str, float]:
    """Bytes: the estimate's parts and what the run took, if there is one."""
    card = replace(need, device=torch.device("cuda"))
    parts = {"frozen": need.frozen, "learned": need.learned, "passing": need.passing}
    estimate = {**parts, "estimate_gpu": card.total, "estimate": need.total}
    if run is None:
        return estimate
    before = psutil.Process().memory_info().rss
    run()
    if base.device.type == "cuda":
        return {**estimate, "measured": torch.cuda.max_memory_allocated()}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {**estimate, "measured": grown + need.frozen}


def alone(measure: Callable[..., dict[str, float]], name: str, preset: str, options: argparse.Namespace) -> Any:
    """`measure` in a process of its own, without values where those of `full` do not fit on a CPU."""
    free = psutil.virtual_memory().available
    empty = name == "full" and options.device == "cpu" and free < int(preset.removesuffix("gb")) * 2**30
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, preset, options.device, options.threads, empty=empty).result()


def main() -> None:
    options = common.options(__doc__, bases=("emojiworld", "mid", "full")).parse_args()
    torch.set_num_threads(options.threads)  # Told beside the results, which other processes make.
    for kind, measure, presets in (("memory", learning, memory.PRESETS), ("thrift", sampling, thrift.PRESETS)):
        results: dict[str, dict[str, Any]] = {}
        for name in options.base:
            rows = dict[str, dict[str, float]]()
            # The most sparing first: of presets with the same settings, the one that needs the least memory runs.
            for preset in reversed(presets):
                alike = next((row for other, row in rows.items() if presets[other] == presets[preset]), None)
                rows[preset] = alike or alone(measure, name, preset, options)
            results[name] = {preset: rows[preset] for preset in presets}
        common.write(options.out, kind, results, options.device)


if __name__ == "__main__":
    main()
