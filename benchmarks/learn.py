"""Seconds per update: our loop against a plain one that does each step what the official code does.

The plain side encodes its pictures or clip with the autoencoder (and, for motions, the image encoder) and its prompt
with the text encoder in every step; ours has done that once. Both run the same denoiser, adapters, loss and optimizer
on the same random base in this process, in turns.

    python benchmarks/learn.py [--updates 20] [--out FILE.json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dreamvideo import bases, media, methods
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, read_concept
from dreamvideo.data import Batch, Data, DataConfig
from dreamvideo.diffusion import Draw, generator
from dreamvideo.methods.method import Method, Stage

SIDE = 64  # pixels
FRAMES = 8


def concepts(folder: Path) -> dict[str, Concept]:
    """Four random pictures and a random clip."""
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    for number in range(4):
        media.write_video(folder / "dog" / f"{number}.png", pixels[number : number + 1], fps=1)
    media.write_video(folder / "turn.mp4", pixels, fps=8)
    return {
        "dreamvideo-subject": read_concept(folder / "dog", kind="image", word="dog"),
        "dreamvideo-motion": read_concept(folder / "turn.mp4", kind="clip", caption="a car turning"),
    }


def stepper(
    base: VideoBase, method: Method, stage: Stage, parameters: list[torch.nn.Parameter], batch: Callable[[Draw], Batch]
) -> Callable[[int], float]:
    """One update on what `batch` gives -> its seconds."""
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=0)

    def step(number: int) -> float:
        begun = time.perf_counter()
        draw = Draw(base.process, generator("benchmark", number))
        for _, term in method.terms(base, stage.learn, batch(draw), draw):
            term.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    return step


def compare(base: VideoBase, name: str, concept: Concept, updates: int) -> dict[str, float]:
    """Median seconds per update of the last stage of a method, both sides in turns, and their ratio."""
    method = methods.find(name)()
    stage = method.stages(base, concept, seed=0)[-1]
    config = DataConfig(frames=FRAMES, height=SIDE, width=SIDE)
    count = len(concept.examples)

    def encoded() -> Data:
        data = Data(base, concept, config, prompt=method.prompt, wants=stage.wants)
        data.encode_text()
        return data

    with base.attached(*stage.hold.values(), *stage.learn.values()):
        parameters = [p for adapters in stage.learn.values() for p in adapters.requires_grad_(True).parameters()]
        cached, numbers = encoded(), range(count)
        sides = {
            "ours": stepper(base, method, stage, parameters, lambda d: cached.batch(numbers, d, live_text=False)),
            "plain": stepper(base, method, stage, parameters, lambda d: encoded().batch(numbers, d, live_text=False)),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(updates + 2):
            for side, step in sides.items():
                seconds[side].append(step(number))
    medians = {side: statistics.median(values[2:]) for side, values in seconds.items()}
    return {**medians, "ratio": medians["plain"] / medians["ours"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = bases.load("tiny")
    with TemporaryDirectory() as folder:
        found = concepts(Path(folder))
        results = {name: compare(base, name, concept, options.updates) for name, concept in found.items()}
    facts = {"base": base.name, "torch": torch.__version__, "machine": platform.machine(), "threads": options.threads}
    for name, result in results.items():
        print(f"{name}: plain {result['plain']:.4f} s, ours {result['ours']:.4f} s, ratio {result['ratio']:.2f}")
    if options.out is not None:
        options.out.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
