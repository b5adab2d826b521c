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
    ("basketball", "sky", "rising"),
    ("tractor", "sky", "rising"),
    ("tractor", "sky", "staying still"),
]


@pytest.fixture(scope="module")
def base() -> VideoBase:
    return bases.load(bundled.DEFAULT_BASE)


def test_a_clip_is_of_the_prompt(base: VideoBase) -> None:
    prompts = [f"a {subject} {motion} in the {place}" for subject, place, motion in PROMPTS]
    clips = [to_pixels(api.generate(base, prompt, seed=seed % 2).frames) for seed, prompt in enumerate(prompts)]
    verdict = judges.Judge.load(PRETRAIN / "judge").verdict(torch.cat(clips), judges.Motions(base.defaults.frames))
    assert list(zip(verdict.subject, verdict.place, verdict.motion, strict=True)) == PROMPTS


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
