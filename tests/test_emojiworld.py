"""The bundled base shows what a prompt says: seen by judges that are no part of it."""

import numpy as np
import pytest
import torch
from test_world import PRETRAIN

from dreamvideo import api, bases, bundled, media
from dreamvideo.bases.base import VideoBase
from dreamvideo.data import to_pixels

judges = pytest.importorskip("judges")

PROMPTS = [
    ("in the snow", "snow", "moving left"),
    ("on the beach", "beach", "rising"),
    ("at sunset", "sunset", "moving right"),
    ("on the road", "road", "growing"),
]


@pytest.fixture(scope="module")
def base() -> VideoBase:
    return bases.load(bundled.DEFAULT_BASE)


def test_places_and_motions_are_those_of_the_prompt(base: VideoBase) -> None:
    clips = [
        to_pixels(api.generate(base, f"a balloon {motion} {words}", seed=1).frames) for words, _, motion in PROMPTS
    ]
    verdict = judges.Judge.load(PRETRAIN / "judge").verdict(torch.cat(clips), judges.Motions(base.defaults.frames))
    assert verdict.place == [place for _, place, _ in PROMPTS]
    assert sum(found == motion for found, (*_, motion) in zip(verdict.motion, PROMPTS, strict=True)) >= 3


def test_the_autoencoder_keeps_pictures(base: VideoBase) -> None:
    files = sorted((bundled.EXAMPLES / "subjects").glob("*/*.png"))
    size = (base.defaults.height, base.defaults.width)
    pixels = torch.cat([to_pixels(media.crop_wide(media.read_image(path).pixels, size)[None]) for path in files])
    mean, _ = base.encode_video(pixels)
    error = (base.decode(mean) - pixels).square().flatten(1).mean(dim=1)
    assert float(np.mean(10 * np.log10(4 / error.numpy()))) > 28


def test_the_bundled_base_is_small() -> None:
    folder = bundled.bundled()[bundled.DEFAULT_BASE].parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 60e6
