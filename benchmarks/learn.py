"""Seconds per update and per stage: our loop against a plain one that does in each step what the official code does.

Ours is `dreamvideo.train.updates` as users run it, its cache and bookkeeping included; the plain side is `official.py`.
All sides learn with the same draws from the same start on the same base, in turns: after each of our updates comes a
plain one. How far apart they end (`apart`, as a part of how far they have come) is told beside how far apart plain runs
end that take their sums in four orders (`plain_apart`, of the two that are farthest). Not so in half precision, where
the sides round in other places: autocast keeps float32 weights.

A base that has recipes of its own takes fewer updates than the paper's procedure does: what our loop takes for those
(`recipe_ours`) is told against the plain side's whole stage. What they learn is compared by the suite `recipes`.

`--profile` counts the products and convolutions of both sides (`gflop`) and tells what ratio the counts would give
(`ratio_gflop`), what part of our time they would take at the device's best rate (`of_floor`), and where our time goes.
`--compile` has further sides of ours in turns with the rest, with compiled blocks and with the whole denoiser compiled.
How long compiling takes at first and when torch has what it compiled on disk, and how many updates pay for it, is told
in a file of its own.

    python benchmarks/learn.py [--base emojiworld mid] [--frames 8] [--updates 8] [--profile] [--compile blocks whole]
"""

import gc
import os
import statistics
from collections.abc import Iterator, Mapping
from itertools import combinations
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
from dreamvideo.adapters.file import ConceptFile
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


def pixels(base: VideoBase, concept: Concept) -> list[Tensor]:
    """Every example (3, F, H, W), as our loop crops it."""
    size = (base.defaults.height, base.defaults.width)
    if concept.examples[0].kind == "image":
        frames = [media.crop_wide(media.read_image(e.path).pixels, size)[None] for e in concept.examples]
    else:
        frames = [media.read_clip(e.path, size=size).frames[: base.defaults.frames] for e in concept.examples]
    return [to_pixels(clip)[0] for clip in frames]


def plain_sides(base: VideoBase, recipe: Recipe, concept: Concept) -> dict[str, Official]:
    sides, weights = dict[str, Official](), common.weights(base)
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
            weights=weights,
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


def plainly(sides: dict[str, Official], numbers: Iterator[list[int]], updates: int) -> Iterator[str]:
    """Learn on the plain side -> the stage's name, after every update."""
    for name, side in sides.items():
        if name == "identity":
            # The word that the first stage has learned.
            with torch.no_grad():
                side.word.copy_(sides["word"].word)
        for step in range(1, updates + 1):
            side.update(step, next(numbers))
            yield name


def as_users(
    base: VideoBase, method: str, concept: Concept, updates: int, learned: dict[str, Tensor], *, compile: str = "none"
) -> Iterator[str]:
    """Learn with our loop -> the stage's name, after every update; at the end `learned` is what each stage learned."""
    recipe = paper_recipe(base, method, concept, updates, compile=compile)
    with TemporaryDirectory() as folder:
        work = train.updates(recipe, base, concept, Path(folder))
        while True:
            try:
                progress = next(work)
            except StopIteration as done:
                learned.update({name: _flat(done.value, name) for name in PAPER_STEPS if name in done.value.sets})
                return
            yield progress.stage


def paper_recipe(base: VideoBase, method: str, concept: Concept, updates: int, *, compile: str = "none") -> Recipe:
    """The paper's, for that many updates of each stage."""
    wishes = {"steps": updates, "save_every": 10 * updates, "compile": compile}
    settings = {"train": wishes, "data": {"frames": base.defaults.frames}}
    return resolve(method, base, concept, recipe="paper", settings=[settings])


def _flat(concept_file: ConceptFile, stage: str) -> Tensor:
    values = {name.replace("vectors", ""): t for name, t in concept_file.sets[stage].state_dict().items()}
    return torch.cat([values[name].flatten() for name in sorted(values)])


def in_turns(sides: Mapping[str, Iterator[str]], device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Seconds of every update of each side, by stage. After an update of one side comes that of the next."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    waiting = dict(sides)
    while waiting:
        for name, side in sides.items():
            begun = common.clock(device)
            if (stage := next(side, None)) is None:
                waiting.pop(name, None)
            else:
                seconds[name].setdefault(stage, []).append(common.clock(device) - begun)
    return seconds


def other_orders(base: VideoBase, recipe: Recipe, concept: Concept, updates: int) -> list[dict[str, Tensor]]:
    """The plain side three times more, with other kernels of attention, with others of products and convolutions, and
    with one thread or, where there is but one, two -> what each stage learned."""

    def learned() -> dict[str, Tensor]:
        sides = plain_sides(base, recipe, concept)
        for _ in plainly(sides, batches(recipe, concept, updates), updates):
            pass
        return {name: side.learned() for name, side in sides.items()}

    found = list[dict[str, Tensor]]()
    for kernels in (sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False)):
        with kernels:
            found.append(learned())
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        return [*found, learned()]
    finally:
        torch.set_num_threads(threads)


def compare(
    base: VideoBase, method: str, concept: Concept, updates: int, ways: Mapping[str, VideoBase]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds of all sides for every stage of a method, and how far apart what they learn is; and for every stage and
    way to compile, of which each comes with a base of its own, what that costs and gains."""
    recipe = paper_recipe(base, method, concept, updates)
    plain, learned = plain_sides(base, recipe, concept), dict[str, Tensor]()
    starts = {name: side.learned() for name, side in plain.items()}
    sides = {
        "ours": as_users(base, method, concept, updates, learned),
        "plain": plainly(plain, batches(recipe, concept, updates), updates),
        **{way: as_users(other, method, concept, updates, {}, compile=way) for way, other in ways.items()},
    }
    seconds = in_turns(sides, base.device)
    again = {way: from_disk(other, method, concept, way) for way, other in ways.items()}
    others = other_orders(base, recipe, concept, updates) if base.dtype == torch.float32 else []
    fewer = own_steps(base, method, concept, batch=recipe.train.batch)
    found, compiled = dict[str, Any](), dict[str, Any]()
    for name, side in plain.items():
        update = {which: statistics.median(times[name][1:]) for which, times in seconds.items()}
        # What is encoded once lies before the first update; the second stage of a subject has it already.
        once = max(0.0, seconds["ours"][name][0] - update["ours"])
        steps, end = PAPER_STEPS[name], side.learned()
        moved = (end - starts[name]).norm()
        found[name] = {
            "ours": update["ours"],
            "plain": update["plain"],
            "ratio": update["plain"] / update["ours"],
            "once": once,
            "stage_ours": once + steps * update["ours"],
            "stage_plain": steps * update["plain"],
            "stage_ratio": steps * update["plain"] / (once + steps * update["ours"]),
        }
        if name in fewer:
            shorter = once + fewer[name] * update["ours"]
            found[name] |= {"updates_paper": steps, "updates_recipe": fewer[name]}
            found[name] |= {"recipe_ours": shorter, "recipe_ratio": steps * update["plain"] / shorter}
        if others:
            found[name]["apart"] = float((learned[name].to(moved.device) - end).norm() / moved)
            ends = [end, *(other[name] for other in others)]
            found[name]["plain_apart"] = max(float((a - b).norm() / moved) for a, b in combinations(ends, 2))
        for way in ways:
            cold = seconds[way][name][0] - once - update[way]
            costs = {"cold": cold, "warm": again[way][name]}
            gain = update["ours"] - update[way]
            pays = {f"{which}_pays_after": cost / gain for which, cost in costs.items() if gain > 0}
            ratios = {"gain": update["ours"] / update[way], "ratio": update["plain"] / update[way]}
            compiled[f"{name}, {way}"] = {"update": update[way], **ratios, **costs, **pays}
    return found, compiled


def own_steps(base: VideoBase, method: str, concept: Concept, *, batch: int) -> dict[str, int]:
    """Updates of every stage by a recipe that the base has of its own, if its updates are as large as the paper's."""
    own = resolve(method, base, concept)
    stages = own.method.stages(base, concept, seed=own.train.seed) if own.train.batch == batch else []
    return {stage.name: stage.steps for stage in stages if stage.steps != PAPER_STEPS[stage.name]}


def from_disk(base: VideoBase, method: str, concept: Concept, way: str) -> dict[str, float]:
    """Seconds of compiling in every stage, when torch has on disk what it compiled before."""
    torch.compiler.reset()
    seconds = in_turns({way: as_users(base, method, concept, 3, {}, compile=way)}, base.device)[way]
    # Examples are encoded anew, too: far less.
    return {name: times[0] - statistics.median(times[1:]) for name, times in seconds.items()}


def counted(base: VideoBase, recipe: Recipe, concept: Concept) -> dict[str, float]:
    """Operations in the products and convolutions of one plain update of each stage."""
    found, numbers = {}, batches(recipe, concept, 1)
    for name, side in plain_sides(base, recipe, concept).items():
        with FlopCounterMode(display=False) as counter:
            side.update(1, next(numbers))
        found[name] = counter.get_total_flops()
    return found


def profiled(base: VideoBase, method: str, concept: Concept) -> dict[str, Any]:
    """Where the time of one of our updates goes, and what its matrix products alone would take."""
    recipe = paper_recipe(base, method, concept, 4)
    counter, traces, flops = FlopCounterMode(display=False), dict[str, profile](), dict[str, float]()

    def on_step(progress: Progress) -> None:
        # The first update warms up, the second is counted, the third is looked at, and the last one saves.
        if progress.step == 1:
            counter.__enter__()
        elif progress.step == 2:
            flops[progress.stage] = counter.get_total_flops()
            counter.__exit__(None, None, None)
            traces[progress.stage] = profile()
            traces[progress.stage].__enter__()
        elif progress.step == 3:
            traces[progress.stage].__exit__(None, None, None)

    with TemporaryDirectory() as folder:
        train.fit(recipe, base, concept, Path(folder), on_step=on_step)
    rate, plain = common.matrix_rate(base.device, base.dtype), counted(base, recipe, concept)
    return {
        stage: {
            "gflop": flops[stage] / 1e9,
            "gflop_plain": plain[stage] / 1e9,
            "ratio_gflop": plain[stage] / flops[stage],
            "floor": flops[stage] / rate,
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
    parser.add_argument("--frames", type=int, help="of a clip, instead of the base's own number")
    parser.add_argument("--half", action="store_true", help="a random base in bf16; on a GPU it always is")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--compile", choices=("blocks", "whole", "graphs"), nargs="+", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, Any]] = {"learn": {}, "compile": {}}
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for name in options.base:
            base, *others = (
                common.load(name, options.device, half=options.half, frames=options.frames)
                for _ in ("none", *options.compile)
            )
            ways = dict(zip(options.compile, others, strict=True))
            name += f", {options.frames} frames" * (options.frames is not None) + ", bf16" * options.half
            for method, concept in common.concepts(Path(folder) / name, base).items():
                stages, made = compare(base, method, concept, options.updates, ways)
                if options.profile:
                    gc.collect()  # Both sides are in cycles, and the profile's run is refused where they leave no room.
                    for stage, told in profiled(base, method, concept).items():
                        stages[stage] |= {**told, "of_floor": told["floor"] / stages[stage]["ours"]}
                for kind, rows in (("learn", stages), ("compile", made)):
                    results[kind].setdefault(name, {}).update(rows)
                    if rows:
                        common.write(options.out, kind, results[kind], options.device)


if __name__ == "__main__":
    main()
