"""Seconds per video: our sampler against the stock pipeline of diffusers and against the official sampler, in turns.

All three sample the same noise with the same DDIM steps and decode it. `apart` is the largest difference of a pixel,
in [-1, 1]. Then, on `emojiworld`, the options that approximate, each beside what it changes: `drift` is the mean
difference of a pixel from the exact video of the same noise, and the scores are means over the same videos, as are the
seconds. They run in turns, too.

    python benchmarks/sample.py [--base emojiworld mid] [--rounds 3] [--out FOLDER]
"""

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import common
import numpy as np
import official
import torch
from diffusers import TextToVideoSDPipeline
from torch import Tensor

from dreamvideo import api, metrics, sample
from dreamvideo.bases.base import VideoBase
from dreamvideo.metrics.metric import Sample
from dreamvideo.sample import Composition, SampleConfig

PROMPTS = ("a frog bouncing on the beach", "a pumpkin moving left in the snow", "a bus growing in the city")
APPROXIMATE: Mapping[str, tuple[str, SampleConfig]] = {
    "ddim, half the steps": ("auto", SampleConfig(steps=8)),
    "dpm++, half the steps": ("auto", SampleConfig(steps=8, sampler="dpm++")),
    "unipc, half the steps": ("auto", SampleConfig(steps=8, sampler="unipc")),
    "deep levels at every 2nd step": ("auto", SampleConfig(reuse=2)),
    "deep levels at every 3rd step": ("auto", SampleConfig(reuse=3)),
    "bf16": ("bf16", SampleConfig()),
    "int8 storage": ("int8", SampleConfig()),
    "fp8 storage": ("fp8", SampleConfig()),
}
"""Name -> precision of the base, and how it is sampled."""
SCORES = ("CLIP-T", "Temporal consistency")


def compare(base: VideoBase, rounds: int) -> dict[str, Any]:
    """Seconds of the three sides, and how far the others' videos are from ours."""
    config, noise, prompt = SampleConfig().filled(base.defaults), common.noise(base), "a dog"
    parts = common.stock(base)
    pipe = TextToVideoSDPipeline(**parts.stock)
    pipe.set_progress_bar_config(disable=True)
    made: dict[str, Tensor] = {}

    def ours() -> None:
        made["ours"] = base.decode(sample.generate(base, prompt, Composition(), config, seed=0, noise=noise))

    def diffusers() -> None:
        frames = pipe(
            prompt,
            num_frames=config.frames,
            height=config.height,
            width=config.width,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            latents=noise.to(base.dtype),
            output_type="pt",
            return_dict=False,
        )[0]
        made["diffusers"] = frames.float().transpose(1, 2) * 2 - 1

    def plain() -> None:
        made["official"] = official.sample(parts, noise, prompt, steps=config.steps, guidance=config.guidance)

    sides = {"ours": ours, "diffusers": diffusers, "official": plain}
    seconds = common.turns(sides, base.device, rounds=rounds)
    others = ("diffusers", "official")
    return {
        "frames": config.frames,
        "size": config.height,
        "steps": config.steps,
        **{f"seconds_{name}": value for name, value in seconds.items()},
        **{f"ratio_{name}": seconds[name] / seconds["ours"] for name in others},
        **{f"apart_{name}": float((made[name].cpu() - made["ours"].cpu()).abs().max()) for name in others},
    }


def approximate(device: str, rounds: int) -> dict[str, Any]:
    """Every option that approximates: its speed as a ratio, and what it changes."""
    chosen = [metric for metric in metrics.for_base("emojiworld") if metric.name in SCORES]
    options = {"exact": ("auto", SampleConfig()), **APPROXIMATE}
    named = {dtype for dtype, _ in options.values()}
    bases = {dtype: api.load_base("emojiworld", dtype=dtype, device=device) for dtype in named}
    videos: dict[str, list[np.ndarray]] = {name: [] for name in options}
    seconds: dict[str, list[float]] = {name: [] for name in options}
    latest: dict[str, np.ndarray] = {}

    def make(name: str, prompt: str, seed: int) -> None:
        dtype, config = options[name]
        latest[name] = api.generate(bases[dtype], prompt, seed=seed, config=config).frames

    for seed, prompt in enumerate(PROMPTS):
        sides = {name: partial(make, name, prompt, seed) for name in options}
        for name, median in common.turns(sides, bases["auto"].device, rounds=rounds).items():
            seconds[name].append(median)
            videos[name].append(latest[name])
    table = {}
    for name, made in videos.items():
        pairs = zip(made, videos["exact"], strict=True)
        drift = statistics.mean(abs(ours.astype(float) - other).mean() / 255 for ours, other in pairs)
        samples = [Sample(frames=f, prompt=p, references=()) for f, p in zip(made, PROMPTS, strict=True)]
        table[name] = {
            "seconds": statistics.mean(seconds[name]),
            "drift": drift,
            **{metric.name: statistics.mean(metric.measure(each) for each in samples) for metric in chosen},
            "ratio": statistics.mean(seconds["exact"]) / statistics.mean(seconds[name]),
        }
    return table


def main() -> None:
    parser = common.options(__doc__, bases=("emojiworld", "mid"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {name: compare(common.load(name, options.device), options.rounds) for name in options.base}
    if "emojiworld" in options.base:
        results["approximate"] = approximate(options.device, options.rounds)
    common.write(options.out, "sample", results, options.device)


if __name__ == "__main__":
    main()
