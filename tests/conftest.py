"""Tiny bases and toy concepts. No network, no accelerator unless a test names it, one thread."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from alexnet import CHANNELS, alexnet
from PIL import Image

from dreamvideo import bases, cli, media
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, read_concept

torch.set_num_threads(1)
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # what `auto` is


@pytest.fixture(params=sorted(bases.available()))
def base(request: pytest.FixtureRequest) -> VideoBase:
    """A fresh tiny base of every family."""
    return bases.available()[request.param].tiny(0)


@pytest.fixture(params=sorted(bases.available().keys() - {"inflated"}))
def base_over_time(request: pytest.FixtureRequest) -> VideoBase:
    """A fresh tiny base of every family that has layers over time."""
    return bases.available()[request.param].tiny(0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Run a command in an empty folder -> its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreamvideo", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            sys.exit(0)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


@pytest.fixture
def unet3d() -> VideoBase:
    """A fresh tiny base of the paper's family."""
    return bases.load("tiny")


@pytest.fixture(scope="session")
def dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three pictures with masks, named `dog`."""
    folder = tmp_path_factory.mktemp("photos") / "dog"
    (folder / "masks").mkdir(parents=True)
    for number, colour in enumerate(((200, 60, 40), (60, 160, 60), (40, 60, 200))):
        pixels = np.full((24, 24, 3), 230, dtype=np.uint8)
        pixels[6:18, 4 + 2 * number : 16 + 2 * number] = colour
        mask = np.zeros((24, 24), dtype=np.uint8)
        mask[6:18, 4 + 2 * number : 16 + 2 * number] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of six frames, named `turn`, in which a square moves."""
    path = tmp_path_factory.mktemp("clips") / "turn.mp4"
    frames = np.full((6, 32, 32, 3), 220, dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[10:22, 2 + 3 * number : 14 + 3 * number] = (30, 90, 160)
    media.write_video(path, frames, fps=8)
    return path


@pytest.fixture(scope="session")
def subject_concept(dog: Path) -> Concept:
    return read_concept(dog, kind="image", word="dog")


@pytest.fixture(scope="session")
def motion_concept(turn: Path) -> Concept:
    return read_concept(turn, kind="clip", caption="a car turning")


@pytest.fixture(scope="session")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights, named and shaped as the published ones."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    trunk = {f"features.{name}": tensor for name, tensor in alexnet().state_dict().items()}
    torch.save(trunk, folder / "alexnet-owt-7be5be79.pth")
    mix = {f"lin{number}.model.1.weight": torch.rand(1, width, 1, 1) for number, width in enumerate(CHANNELS)}
    torch.save(mix, folder / "alex.pth", _use_new_zipfile_serialization=False)  # as it is published
    return folder
