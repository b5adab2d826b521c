"""Seconds per update and per stage: our loop against a plain one that does in each step what the official code does.

Ours is `dreamvideo.train.fit` as users run it, its cache and bookkeeping included; the plain side is `official.py`.
Both learn with the same draws from the same start on the same base, in turns: after each of our updates comes a plain
one. How far apart they end (`apart`, as a part of how far they have come) is told beside how far apart two plain runs
end whose sums are taken in another order (`plain_apart`).

`--profile` counts the products and convolutions of both sides (`gflop`) and tells what ratio the counts would give
(`ratio_gflop`), what part of our time they would take at the device's best rate (`of_floor`), and where our time goes.
`--compile emojiworld` learns the motion there again with compiled blocks, and with the whole denoiser compiled, and
tells after how many updates that has paid for the compiling.

    python benchmarks/learn.py [--base emojiworld mid] [--updates 8] [--profile] [--compile emojiworld]
        [--out FOLDER]
"""

import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import torch
from official import Official
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from dreamvideo import media, train
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept
from dreamvideo.data import order, to_pixels
from dreamvideo.progress import Progress
from dreamvideo.recipe import Recipe, resolve

PAPER_STEPS = {"word": 3000, "identity": 800, "motion": 1000}
"""Of the paper's procedure, to tell what a whole stage takes."""
_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "convolutions": ("convolution", "slow_conv", "cudnn"),
    "attention": ("scaled_dot_product", "flash", "efficient_attention"),
    "normalisation": ("norm",),
    "optimizer": ("adam", "foreach"),
}


class Watch:
    """What our loop is told after an update: notes its time, then lets the plain side do the same update."""

    def __init__(self, base: VideoBase, plain: dict[str, Official], numbers: Iterator[list[int]]) -> None:
        self.base, self.plain, self.numbers = base, plain, numbers
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.begun = self.last = common.clock(base.device)

    def __call__(self, progress: Progress) -> None:
        now = common.clock(self.base.device)
        mine = self.seconds.setdefault(progress.stage, {"ours": [], "plain": []})
        mine["ours"].append(now - self.last)
        side = self.plain[progress.stage]
        if progress.stage == "identity" and progress.step == 1:
            # The word that the plain side's first stage has learned.
            with torch.no_grad():
                side.word.copy_(self.plain["word"].word)
        with torch.enable_grad():
            side.update(progress.step, next(self.numbers))
        self.last = common.clock(self.base.device)
        mine["plain"].append(self.last - now)


def pixels(base: VideoBase, concept: Concept) -> list[Tensor]:
    """Every example (3, F, H, W), as our loop crops it."""
    size = (base.defaults.height, base.defaults.width)
    if concept.examples[0].kind == "image":
        frames = [media.crop_wide(media.read_image(e.path).pixels, size)[None] for e in concept.examples]
    else:
        frames = [media.read_clip(e.path, size=size).frames[: base.defaults.frames] for e in concept.examples]
    return [to_pixels(clip)[0] for clip in frames]


def plain_sides(base: VideoBase, recipe: Recipe, concept: Concept) -> dict[str, Official]:
    sides: dict[str, Official] = {}
    examples, word = pixels(base, concept), None
    for stage in recipe.method.stages(base, concept, seed=recipe.train.seed):
        sets = {**stage.learn, **stage.hold}
        if "word" in sets:
            (word,) = sets["word"].state_dict().values()
        kinds = [adapters for name, adapters in stage.learn.items() if name != "word"]
        sides[stage.name] = Official(
            base,
            stage.name,
            examples,
            "a *" if word is not None else recipe.method.prompt(concept, concept.examples[0]),
            adapters=kinds[0] if kinds else None,
            word=None if word is None else word.to(base.device),
            lr=stage.lr,
            warmup=recipe.train.warmup,
            seed=recipe.train.seed,
        )
    return sides


def batches(recipe: Recipe, concept: Concept, updates: int) -> Iterator[list[int]]:
    """Those of our loop, for one stage after another."""
    while True:
        stage = order(len(concept.examples), recipe.train.batch, seed=recipe.train.seed, config=recipe.data)
        yield from (next(stage) for _ in range(updates))


def another_order(base: VideoBase, recipe: Recipe, concept: Concept, updates: int) -> dict[str, Tensor]:
    """The plain side once more, with kernels that sum in another order -> what each stage learned."""
    sides, numbers = plain_sides(base, recipe, concept), batches(recipe, concept, updates)
    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
        for name, side in sides.items():
            if name == "identity":
                with torch.no_grad():
                    side.word.copy_(sides["word"].word)
            for step in range(1, updates + 1):
                side.update(step, next(numbers))
    return {name: side.learned() for name, side in sides.items()}


def ours_learned(concept_file: Any, stage: str) -> Tensor:
    values = {name.replace("vectors", ""): t for name, t in concept_file.sets[stage].state_dict().items()}
    return torch.cat([values[name].flatten() for name in sorted(values)])


def compare(base: VideoBase, method: str, concept: Concept, updates: int) -> dict[str, Any]:
    """Seconds of both sides for every stage of a method, and how far apart what they learn is."""
    settings = {"train": {"steps": updates, "save_every": 10 * updates}, "data": {"frames": base.defaults.frames}}
    recipe = resolve(method, base, concept, recipe="paper", settings=[settings])
    sides = plain_sides(base, recipe, concept)
    starts = {name: side.learned() for name, side in sides.items()}
    watch = Watch(base, sides, batches(recipe, concept, updates))
    with TemporaryDirectory() as folder:
        learned = train.fit(recipe, base, concept, Path(folder), on_step=watch)
    again = another_order(base, recipe, concept, updates)
    found = {}
    for name, seconds in watch.seconds.items():
        ours, plain = (statistics.median(seconds[side][1:]) for side in ("ours", "plain"))
        result = {"ours": ours, "plain": plain, "ratio": plain / ours}
        # What is encoded once lies before the first update; the second stage of a subject has it already.
        once = max(0.0, seconds["ours"][0] - ours)
        steps = PAPER_STEPS[name]
        moved = (sides[name].learned() - starts[name]).norm()
        found[name] = {
            **result,
            "once": once,
            "stage_ours": once + steps * ours,
            "stage_plain": steps * plain,
            "stage_ratio": steps * plain / (once + steps * ours),
            "apart": float((ours_learned(learned, name).to(moved.device) - sides[name].learned()).norm() / moved),
            "plain_apart": float((again[name] - sides[name].learned()).norm() / moved),
        }
    return found


def counted(base: VideoBase, recipe: Recipe, concept: Concept) -> dict[str, float]:
    """Operations in the products and convolutions of one plain update of each stage."""
    found, numbers = {}, batches(recipe, concept, 1)
    for name, side in plain_sides(base, recipe, concept).items():
        with FlopCounterMode(display=False) as counter:
            side.update(1, next(numbers))
        found[name] = counter.get_total_flops()
    return found


def timed(base: VideoBase, method: str, concept: Concept, updates: int, how: str) -> list[float]:
    """Seconds of every update of a method with one stage, compiled in that way; the first has all that is done once."""
    wishes = {"steps": updates, "save_every": 10 * updates, "compile": how}
    settings = {"train": wishes, "data": {"frames": base.defaults.frames}}
    recipe = resolve(method, base, concept, recipe="paper", settings=[settings])
    times = [common.clock(base.device)]
    with TemporaryDirectory() as folder:
        train.fit(recipe, base, concept, Path(folder), on_step=lambda _: times.append(common.clock(base.device)))
    return [after - before for before, after in pairwise(times)]


def compiled(base: VideoBase, method: str, concept: Concept, updates: int) -> dict[str, dict[str, float]]:
    """Of every way to compile: seconds an update, those of compiling, and how many updates pay for it, if any do."""
    first, *rest = timed(base, method, concept, updates, "none")
    update = statistics.median(rest)
    found = {"none": {"update": update}}
    for how in ("blocks", "whole"):
        slow, *fast = timed(base, method, concept, updates, how)
        found[how] = {"update": statistics.median(fast), "compiling": slow - first}
        gain = update - found[how]["update"]
        found[how] |= {"pays_after": found[how]["compiling"] / gain} if gain > 0 else {}
    return found


def profiled(base: VideoBase, method: str, concept: Concept) -> dict[str, Any]:
    """Where the time of one of our updates goes, and how near it is to its matrix products alone."""
    settings = {"train": {"steps": 3, "save_every": 100}, "data": {"frames": base.defaults.frames}}
    recipe = resolve(method, base, concept, recipe="paper", settings=[settings])
    counter, traces, flops, seconds = FlopCounterMode(display=False), {}, {}, {}
    marks = {"flops": 0.0, "time": time.perf_counter()}

    def on_step(progress: Progress) -> None:
        # The first update warms up, the second is counted, the third is timed.
        now, total = common.clock(base.device), counter.get_total_flops()
        if progress.step == 2:
            flops[progress.stage] = total - marks["flops"]
            counter.__exit__(None, None, None)
            traces[progress.stage] = profile()
            traces[progress.stage].__enter__()
        elif progress.step == 3:
            seconds[progress.stage] = now - marks["time"]
            traces[progress.stage].__exit__(None, None, None)
        elif progress.step == 1:
            counter.__enter__()
            total = counter.get_total_flops()
        marks.update(flops=total, time=common.clock(base.device))

    with TemporaryDirectory() as folder:
        train.fit(recipe, base, concept, Path(folder), on_step=on_step)
    rate, plain = common.matrix_rate(base.device, base.dtype), counted(base, recipe, concept)
    return {
        stage: {
            "gflop": flops[stage] / 1e9,
            "gflop_plain": plain[stage] / 1e9,
            "ratio_gflop": plain[stage] / flops[stage],
            "floor": flops[stage] / rate,
            "of_floor": flops[stage] / rate / seconds[stage],
            "shares": _shares(trace),
        }
        for stage, trace in traces.items()
    }


def _shares(trace: profile) -> dict[str, float]:
    """Share of the time in each kind of operation."""
    rows = [(event.key.lower(), event.self_device_time_total or event.self_cpu_time_total)
            for event in trace.key_averages()]  # fmt: skip
    total, shares = sum(spent for _, spent in rows), dict.fromkeys((*_KINDS, "else"), 0.0)
    for key, spent in rows:
        kind = next((kind for kind, words in _KINDS.items() if any(word in key for word in words)), "else")
        shares[kind] += spent / total
    return {kind: round(share, 3) for kind, share in shares.items()}


def main() -> None:
    parser = common.options(__doc__, bases=("emojiworld", "mid"))
    parser.add_argument("--updates", type=int, default=8, help="of each stage; the first is left out")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--compile", choices=common.BASES, nargs="+", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {}
    for name in options.base:
        with TemporaryDirectory() as folder:
            base = common.load(name, options.device)
            for method, concept in common.concepts(Path(folder), base).items():
                stages = compare(base, method, concept, options.updates)
                if options.profile:
                    told = profiled(base, method, concept)
                    stages = {stage: {**values, **told[stage]} for stage, values in stages.items()}
                results.setdefault(name, {}).update(stages)
                if name in options.compile and method == "dreamvideo-motion":
                    results.setdefault("compile", {})[name] = compiled(base, method, concept, options.updates)
    common.write(options.out, "learn", results, options.device)


if __name__ == "__main__":
    main()
