"""One process among several, without the others: they meet in test_train.py."""

import logging
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from dreamvideo import api, processes
from dreamvideo.bases.base import VideoBase


def test_a_process_that_does_not_lead_is_quiet_unless_something_goes_wrong(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    # The file is there, and only the process that leads tells its path.
    assert run("generate", "a dog", "--base", "tiny", "--steps", 1, "--frames", 1, "--out", "a.mp4") == (0, "", "")
    assert Path("a.mp4").is_file()
    code, out, err = run("subject", "nowhere", "--base", "tiny")
    assert (code, out) == (2, "") and err.startswith("dreamvideo: nowhere") and err.count("\n") == 1
    assert logging.getLogger("dreamvideo").isEnabledFor(logging.WARNING)  # for what comes after


def test_one_process_may_learn_on_the_cpu_beside_an_accelerator(
    unet3d: VideoBase, turn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(processes.here().__dict__, "device", torch.device("meta", 0))
    assert PartialState().device.type == "meta"
    assert [processes.device(wanted) for wanted in ("auto", "meta", "cpu")] == ["meta:0", "meta:0", "cpu"]
    for name in ("a", "b"):
        learning = {"method": "dreamvideo-motion", "caption": "a car turning", "out": tmp_path / name}
        learned = api.learn(unet3d, turn, **learning, settings=[{"train": {"steps": 1}}])
        assert learned.meta.steps == {"motion": 1}
