"""What is learned and sampled on an accelerator is what a CPU learns and samples, to rounding.

Where there is no accelerator, a second time on the CPU: the tests themselves are tested, and the reference is exact.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dreamvideo as dv
from dreamvideo import api, bases
from dreamvideo.adapters.file import ConceptFile
from dreamvideo.bases.base import VideoBase
from dreamvideo.errors import Interrupted
from dreamvideo.progress import Progress
from dreamvideo.sample import SampleConfig

DEVICE = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
QUICK = {"steps": 4, "batch": 2, "save_every": 2}
SMALL = SampleConfig(frames=4, steps=3)
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs are made on CUDA alone")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """cuDNN's convolutions round to 10 bits unless told not to."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def motion(base: VideoBase, turn: Path, folder: Path, *, on_step: Any = None, **train: Any) -> ConceptFile:
    """With appearance guidance, after a few updates."""
    how = {"settings": [{"train": {**QUICK, **train}}], **({} if on_step is None else {"on_step": on_step})}
    return api.learn(base, turn, method="dreamvideo-motion", caption="a car turning", out=folder / "turn", **how)


def concepts(base: VideoBase, dog: Path, turn: Path, folder: Path, **train: Any) -> list[ConceptFile]:
    """A subject and a motion."""
    how = [{"train": {**QUICK, **train}}]
    subject = api.learn(base, dog, method="dreamvideo-subject", word="dog", out=folder / "dog", settings=how)
    return [subject, motion(base, turn, folder, **train)]


def values(learned: list[ConceptFile]) -> dict[str, Tensor]:
    return {
        f"{concept.meta.name}/{name}/{key}": tensor.detach().cpu().float()
        for concept in learned
        for name, adapters in concept.sets.items()
        for key, tensor in adapters.state_dict().items()
    }


def apart(these: Mapping[str, Tensor], those: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """How far two runs end from each other, as a part of how far one has come."""
    way = sum((those[key] - start[key]).square().sum() for key in those)
    return float((sum((these[key] - those[key]).square().sum() for key in those) / way).sqrt())


@pytest.fixture(scope="module")
def exact(dog: Path, turn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ConceptFile], Any, Any]:
    """What a CPU learns, all of where it started, and the video it makes of it."""
    folder = tmp_path_factory.mktemp("exact")
    base = bases.load("tiny")
    learned = concepts(base, dog, turn, folder)
    start = values(concepts(base, dog, turn, folder / "start", steps=1, warmup=10**9))
    video = dv.generate(base, "a <dog> turning", concepts=learned, appearance=dog / "0.png", config=SMALL)
    return learned, start, video.frames


@pytest.mark.parametrize(
    "train",
    [{}, {"rematerialise": True}, {"offload": True}, pytest.param({"compile": "graphs"}, marks=needs_cuda)],
    ids=["plain", "rematerialised", "offloaded", "graphs"],
)
def test_learning_there_is_learning_here(
    exact: Any, dog: Path, turn: Path, tmp_path: Path, train: Mapping[str, Any]
) -> None:
    known, start, _ = exact
    base = bases.load("tiny", dtype="fp32", device=DEVICE)
    learned = values(concepts(base, dog, turn, tmp_path, **train))
    assert base.device.type == DEVICE
    assert apart(learned, values(known), start) < 1e-2


def test_what_is_stopped_there_goes_on_there(exact: Any, turn: Path, tmp_path: Path) -> None:
    (_, known), start, _ = exact

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise Interrupted("here")

    base = bases.load("tiny", dtype="fp32", device=DEVICE)
    with pytest.raises(Interrupted):
        motion(base, turn, tmp_path, on_step=stop)
    learned = values([motion(base, turn, tmp_path)])
    assert apart(learned, values([known]), start) < 1e-2


@pytest.mark.parametrize("preset", [None, "8gb"])
def test_sampling_there_is_sampling_here(exact: Any, dog: Path, preset: str | None) -> None:
    known, _, frames = exact
    base = bases.load("tiny", dtype="fp32", device=DEVICE)
    video = dv.generate(base, "a <dog> turning", concepts=known, appearance=dog / "0.png", config=SMALL, preset=preset)
    # Rounding to bytes may fall to either side.
    assert abs(video.frames.astype(int) - frames.astype(int)).max() <= 1


@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp8"])
def test_coarser_weights_are_near(exact: Any, dog: Path, turn: Path, tmp_path: Path, dtype: str) -> None:
    if DEVICE == "mps" and dtype == "fp8":
        pytest.skip("torch keeps no fp8 on MPS")
    known, start, frames = exact
    base = bases.load("tiny", dtype=dtype, device=DEVICE)
    # Adam takes small gradients for large: their rounding turns some steps around.
    assert apart(values(concepts(base, dog, turn, tmp_path)), values(known), start) < 0.5
    video = dv.generate(base, "a <dog> turning", concepts=known, appearance=dog / "0.png", config=SMALL)
    assert abs(video.frames.astype(int) - frames.astype(int)).mean() < 4
