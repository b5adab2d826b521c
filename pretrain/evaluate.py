"""Is the base good enough? Places, subjects and motions of sampled clips, by judges that are no part of it.

    python pretrain/evaluate.py BASE [--judge DIR] [--prompts 500] [--sprites FILE] [--out FOLDER] [--steps N]

Prompts name training subjects, places and motions, each about equally often, in the words of the world's captions. The
judge's own accuracy on rendered clips is told first, then the autoencoder's error on renderings that no stage saw, then
what was sampled through the package's own sampler. OUT gets `evaluation.json` and contact sheets, `sheet-N.png`.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from judges import Judge, Motions
from stages.stage import sheet
from torch import Tensor
from world import MOTIONS, PLACES, World

from dreamvideo import bases, sample
from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import generator
from dreamvideo.files import whole, write_json

__all__ = ["accuracy", "asked", "main", "psnr"]

_SHEET = 64
KINDS = ("subject", "place", "motion")


def asked(subjects: tuple[str, ...], count: int, *, seed: int) -> list[tuple[str, str, str]]:
    """Subject, place and motion of each prompt; each name comes equally often, give or take one."""
    shuffled = random.Random(seed)

    def spread(names: tuple[str, ...]) -> list[str]:
        many = [names[row % len(names)] for row in range(count)]
        shuffled.shuffle(many)
        return many

    return list(zip(spread(subjects), spread(PLACES), spread(MOTIONS), strict=True))


def accuracy(truth: list[str], found: list[str]) -> float:
    """Share of equal pairs."""
    return sum(a == b for a, b in zip(truth, found, strict=True)) / len(truth)


@torch.no_grad()
def psnr(base: VideoBase, pixels: Tensor) -> float:
    """Mean over frames (B, 3, S, S) in [-1, 1], in dB."""
    mean, _ = base.encode_video(pixels[:, :, None])
    error = base.decode(mean)[:, :, 0].float().clamp(-1, 1) - pixels
    return (10 * torch.log10(4 / error.square().flatten(1).mean(dim=1))).mean().item()


def sampled(base: VideoBase, prompts: list[str], config: sample.SampleConfig, *, seed: int) -> Tensor:
    """Clips (B, 3, F, S, S) in [-1, 1], each from its own noise."""
    clips, begun = [], time.monotonic()
    for number, prompt in enumerate(prompts):
        latents = sample.generate(base, prompt, sample.Composition(), config, seed=seed + number)
        with torch.no_grad():
            clips.append(base.decode(latents).float().cpu().clamp(-1, 1))
        if (number + 1) % 50 == 0:
            print(f"{number + 1} of {len(prompts)} clips, {time.monotonic() - begun:.0f} s", flush=True)
    return torch.cat(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a bundled base's name, or a folder")
    parser.add_argument("--judge", type=Path, default=Path(__file__).parent / "judge")
    parser.add_argument("--sprites", type=Path, default=Path(__file__).parent / "sprites.safetensors")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("evaluation"))
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    base, judge = bases.load(given.base, device=given.device, dtype=given.dtype), Judge.load(given.judge)
    defaults = base.defaults
    world = World(given.sprites, size=defaults.height, subjects=judge.subjects)
    motions = Motions(defaults.frames)
    told: dict[str, object] = {"base": base.name, "subjects": len(judge.subjects), "prompts": given.prompts}

    rendered = world.clips(500, defaults.frames, generator(given.seed, "judge's test"))
    verdict, truth = judge.verdict(rendered.pixels, motions), world.described(rendered)
    told["judge"] = {kind: round(accuracy(truth[kind], getattr(verdict, kind)), 4) for kind in KINDS}
    print("the judge on renderings:", json.dumps(told["judge"]), flush=True)
    told["psnr"] = round(psnr(base, rendered.pixels[:, :, 0].to(base.device)), 2)
    print(f"the autoencoder on renderings: {told['psnr']} dB", flush=True)

    config = sample.SampleConfig(guidance=given.guidance, steps=given.steps)
    wanted = asked(judge.subjects, given.prompts, seed=given.seed)
    prompts = [world.caption(*names) for names in wanted]
    begun = time.monotonic()
    clips = sampled(base, prompts, config, seed=given.seed)
    told["seconds_per_clip"] = round((time.monotonic() - begun) / len(prompts), 3)
    verdict = judge.verdict(clips, motions)
    told["sampled"] = {
        kind: round(accuracy([names[place] for names in wanted], getattr(verdict, kind)), 4)
        for place, kind in enumerate(KINDS)
    }
    told["motions"] = {
        name: round(accuracy([name] * len(found), found), 3)
        for name in MOTIONS
        if (found := [f for f, names in zip(verdict.motion, wanted, strict=True) if names[2] == name])
    }
    filled = config.filled(defaults)
    told["sampling"] = {"guidance": filled.guidance, "steps": filled.steps, "dtype": base.precision, "seed": given.seed}
    print("sampled:", json.dumps(told["sampled"]), flush=True)
    write_json(given.out / "evaluation.json", told)
    for first in range(0, min(len(clips), _SHEET), _SHEET // 2):
        rows = slice(first, first + _SHEET // 2)
        with whole(given.out / f"sheet-{first // (_SHEET // 2)}.png") as draft:
            sheet(clips[rows], prompts[rows], columns=2, tile=64).save(draft)
    print(given.out / "evaluation.json")


if __name__ == "__main__":
    main()
