"""Example concepts to customise a base with: held-out subjects as pictures, held-out motions as clips, and their truth.

python pretrain/concepts.py OUT_DIR [--sprites FILE] [--size 64] [--frames 8] [--seed 0]

OUT_DIR/subjects/NAME/   0.png .. 4.png, masks/, concept.toml: each in another place
OUT_DIR/motions/NAME/    0.mp4 .. 2.mp4 with captions, concept.toml: each of another training subject
OUT_DIR/truth.json       of every file: subject, place, motion, and per frame centre, scale and angle
"""

import argparse
import tomllib
from pathlib import Path

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from world import HELD_OUT_MOTIONS, MOTIONS, NARROW, PLACES, Clips, World

from dreamvideo.files import write_json, write_text
from dreamvideo.media import write_video

__all__ = ["main", "write_motion", "write_subject"]

HERE = Path(__file__).parent
FPS = 8
PICTURES = 5
CLIPS = 3

Truth = dict[str, dict[str, object]]  # by file


def write_subject(folder: Path, name: str, world: World, generator: torch.Generator) -> Truth:
    """Write pictures and masks of a subject, no place twice."""
    places = [PLACES[row] for row in torch.randperm(len(PLACES), generator=generator)[:PICTURES]]
    clips = world.images(PICTURES, generator, subject=name, place=places)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for row, (pixels, mask) in enumerate(zip(_bytes(clips.pixels), _bytes(clips.mask * 2 - 1), strict=True)):
        Image.fromarray(pixels[0]).save(folder / f"{row}.png")
        Image.fromarray(mask[0, ..., 0]).save(folder / "masks" / f"{row}.png")
    word = world.words[world.subjects.index(name)]
    write_text(folder / "concept.toml", tomli_w.dumps({"name": name, "word": word}))
    return {f"{row}.png": _truth(clips, row, world) for row in range(PICTURES)}


def write_motion(folder: Path, name: str, frames: int, world: World, generator: torch.Generator) -> Truth:
    """Write clips of a motion and their captions, no subject and no place twice."""
    subjects = [world.subjects[row] for row in torch.randperm(len(world.subjects), generator=generator)[:CLIPS]]
    places = [PLACES[row] for row in torch.randperm(len(PLACES), generator=generator)[:CLIPS]]
    clips = world.clips(CLIPS, frames, generator, subject=subjects, place=places, motion=name)
    folder.mkdir(parents=True, exist_ok=True)
    for row, (pixels, caption) in enumerate(zip(_bytes(clips.pixels), clips.captions, strict=True)):
        write_video(folder / f"{row}.mp4", pixels, fps=FPS)
        write_text(folder / f"{row}.txt", caption + "\n")
    write_text(folder / "concept.toml", tomli_w.dumps({"name": name}))
    return {f"{row}.mp4": _truth(clips, row, world) for row in range(CLIPS)}


def _bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """(B, C, F, H, W) in [-1, 1] -> (B, F, H, W, C)"""
    return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def _truth(clips: Clips, row: int, world: World) -> dict[str, object]:
    def rounded(values: Tensor) -> list:
        return np.round(values[row].double().numpy(), 4).tolist()

    return {
        "subject": world.subjects[clips.subject[row]],
        "place": PLACES[clips.place[row]],
        "motion": (MOTIONS + HELD_OUT_MOTIONS)[clips.motion[row]],
        "centre": rounded(clips.centre),
        "scale": rounded(clips.scale),
        "angle": rounded(clips.angle),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sprites", type=Path, default=HERE / "sprites.safetensors")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    examples = tomllib.loads((HERE / "lists" / "subjects.toml").read_text(encoding="utf-8"))["examples"]
    strangers = World(options.sprites, size=options.size, subjects=examples)
    known = World(options.sprites, size=options.size, subjects=NARROW)
    truth: Truth = {}
    for number, name in enumerate((*examples, *HELD_OUT_MOTIONS)):
        generator = torch.Generator().manual_seed(options.seed * 1000 + number)
        kind = "subjects" if number < len(examples) else "motions"
        folder = Path(kind, name.replace(" ", "-"))
        if kind == "subjects":
            its_truth = write_subject(options.out / folder, name, strangers, generator)
        else:
            its_truth = write_motion(options.out / folder, name, options.frames, known, generator)
        truth |= {(folder / file).as_posix(): one for file, one in its_truth.items()}
    write_json(options.out / "truth.json", truth)
    print(f"{options.out}: {len(examples)} subjects, {len(HELD_OUT_MOTIONS)} motions")


if __name__ == "__main__":
    main()
