"""The loop: what it ends in, and that nothing which stops it on the way changes that by a bit."""

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import Tensor, nn

from dreamvideo import api, bases, cli, config, processes, run, train
from dreamvideo.adapters import file
from dreamvideo.adapters.file import ConceptFile, load
from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import BadConfig, BadInput, Interrupted, RunFailed
from dreamvideo.progress import Progress

QUICK = {"steps": 4, "batch": 2, "save_every": 2}
CAPTION = "a car turning"


class PowerCut(BaseException):
    """The machine is gone at this moment."""


@pytest.fixture(scope="module")
def tiny() -> VideoBase:
    """One base for all tests here: learning leaves it as it was, even if it ends badly."""
    return bases.load("tiny")


def subject(base: VideoBase, source: Path, out: Path, **how: Any) -> ConceptFile:
    options = {name: how.pop(name) for name in ("restart", "on_step", "name", "word") if name in how}
    settings = [{"train": QUICK | how}]
    return api.learn(
        base, source, method="dreamvideo-subject", **{"word": "dog", "out": out, "settings": settings, **options}
    )


def motion(base: VideoBase, source: Path, out: Path, **how: Any) -> ConceptFile:
    options = {name: how.pop(name) for name in ("restart", "on_step", "caption") if name in how}
    settings = [{"train": QUICK | how}]
    return api.learn(
        base, source, method="dreamvideo-motion", **{"caption": CAPTION, "out": out, "settings": settings, **options}
    )


def bytes_of(concept: ConceptFile) -> bytes:
    assert concept.path is not None
    return concept.path.read_bytes()


def tensors_of(concept: ConceptFile) -> dict[str, Tensor]:
    return {name: tensor for adapters in concept.sets.values() for name, tensor in adapters.state_dict().items()}


def assert_near(first: ConceptFile, second: ConceptFile, *, within: float) -> None:
    others = tensors_of(second)
    for name, tensor in tensors_of(first).items():
        assert (tensor - others[name]).abs().max() <= within, name


def rows(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["name"], row["step"]) for row in map(json.loads, lines)]


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at(stage: str, step: int, act: Callable[[], None]) -> Callable[[Progress], None]:
    """Act after a step."""
    return lambda progress: act() if (progress.stage, progress.step) == (stage, step) else None


def cut() -> None:
    raise PowerCut


@pytest.fixture(scope="module")
def alone(tiny: VideoBase, dog: Path, turn: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The folders of a subject's and a motion's run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    subject(tiny, dog, folder / "dog")
    motion(tiny, turn, folder / "turn")
    return {"dog": folder / "dog", "turn": folder / "turn"}


# -- a run left alone -------------------------------------------------------------------------------------------------


def test_subject_ends_in_a_file_with_both_stages_learned(alone: Mapping[str, Path], tiny: VideoBase) -> None:
    concept = load(alone["dog"] / "dog.safetensors")
    assert concept.sets.keys() == {"word", "identity"}
    assert concept.meta.steps == {"word": 4, "identity": 4}
    assert (concept.meta.name, concept.meta.role, concept.meta.word) == ("dog", "subject", "dog")
    (vectors,) = concept.sets["word"].parameters()
    start = tiny.token_vectors("dog").mean(0)
    # Adam moves every value by about the learning rate; warm-up makes that (1 + 2 + 3 + 4) / 10 of 1e-4.
    assert 2e-5 < (vectors[0] - start).abs().max() < 1.1e-4
    up = [tensor for name, tensor in concept.sets["identity"].state_dict().items() if ".up." in name]
    assert all(1e-6 < tensor.abs().max() < 1.1e-5 for tensor in up)


def test_motion_ends_in_a_file(alone: Mapping[str, Path], tiny: VideoBase) -> None:
    concept = load(alone["turn"] / "turn.safetensors")
    assert concept.sets.keys() == {"motion"}
    assert (concept.meta.role, concept.meta.caption, concept.meta.fingerprint) == ("motion", CAPTION, tiny.fingerprint)
    assert len(concept.sets["motion"].sites) == len(tiny.sites("time", ("attn1", "attn2", "ff")))
    assert all(tensor.any() for tensor in tensors_of(concept).values())


def test_run_folder_holds_what_it_promises(alone: Mapping[str, Path]) -> None:
    folder = alone["dog"]
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml", "metrics.jsonl", "checkpoints", "cache", "dog.safetensors", "run.json",
    }  # fmt: skip
    assert rows(folder) == [(stage, step) for stage in ("word", "identity") for step in range(1, 5)]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        f"{stage}-00000{step}.safetensors" for stage in ("identity", "word") for step in (2, 4)
    ]
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (facts["device"], facts["processes"]) == ("cpu", 1)
    assert 0 < facts["seconds"] < 100
    assert config.read_toml(folder / "recipe.toml")["train"]["steps"] == 4


def test_last_checkpoint_is_the_result_and_earlier_ones_are_not(alone: Mapping[str, Path]) -> None:
    folder = alone["turn"]
    result, last, middle = (
        tensors_of(load(path))
        for path in (
            folder / "turn.safetensors",
            folder / "checkpoints" / "motion-000004.safetensors",
            folder / "checkpoints" / "motion-000002.safetensors",
        )
    )
    assert all(torch.equal(last[name], tensor) for name, tensor in result.items())
    assert not all(torch.equal(middle[name], tensor) for name, tensor in result.items())


def test_checkpoint_says_how_many_steps_are_done(alone: Mapping[str, Path]) -> None:
    checkpoints = alone["dog"] / "checkpoints"
    assert load(checkpoints / "word-000002.safetensors").meta.steps.get("word") == 2
    assert load(checkpoints / "identity-000002.safetensors").meta.steps == {"word": 4, "identity": 2}


def test_metrics_hold_finite_losses_that_are_the_sums_of_their_terms(alone: Mapping[str, Path]) -> None:
    for line in (alone["dog"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["loss"] == pytest.approx(row["denoise"])
        assert 0 < row["loss"] < 10


def test_progress_is_told_after_every_update(tiny: VideoBase, dog: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    subject(tiny, dog, tmp_path, on_step=told.append)
    assert [(p.stage, p.step, p.steps) for p in told] == [(s, n, 4) for s in ("word", "identity") for n in range(1, 5)]


def test_base_is_left_as_it_was(tiny: VideoBase, dog: Path, tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in tiny.parts.denoiser.state_dict().items()}
    with pytest.raises(PowerCut):
        subject(tiny, dog, tmp_path, on_step=at("identity", 1, cut), dropout=0.5, rematerialise=True)
    after = tiny.parts.denoiser.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert not any(module.training for module in tiny.parts.denoiser.modules() if isinstance(module, nn.Dropout))
    assert not any(parameter.requires_grad for parameter in tiny.parts.denoiser.parameters())
    assert not tiny.givens.rematerialise
    with pytest.raises(BadInput, match="<dog> is not among the learned words"):
        tiny.encode_text(["<dog>"])


def test_seed_decides(tiny: VideoBase, turn: Path, alone: Mapping[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(12345)
    again = motion(tiny, turn, tmp_path / "again")
    assert bytes_of(again) == (alone["turn"] / "turn.safetensors").read_bytes()
    other = tensors_of(motion(tiny, turn, tmp_path / "other", seed=1))
    assert not any(torch.equal(other[name], tensor) for name, tensor in tensors_of(again).items())


# -- the same call again ----------------------------------------------------------------------------------------------


def test_finished_run_returns_at_once(
    tiny: VideoBase, dog: Path, alone: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("learned again")

    before = everything_in(alone["dog"])
    monkeypatch.setattr(tiny, "predict", refuse)
    monkeypatch.setattr(tiny, "encode_video", refuse)
    again = subject(tiny, dog, alone["dog"])
    assert again.path == alone["dog"] / "dog.safetensors"
    assert everything_in(alone["dog"]) == before


def test_changed_recipe_is_refused_and_nothing_is_touched(
    tiny: VideoBase, dog: Path, alone: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(PowerCut):
        subject(tiny, dog, tmp_path, on_step=at("word", 3, cut))
    for folder in (alone["dog"], tmp_path):
        before = everything_in(folder)
        with pytest.raises(BadConfig, match=r"another recipe \(train\.batch: 2 -> 1\): .*--restart"):
            subject(tiny, dog, folder, batch=1)
        assert everything_in(folder) == before


def test_changed_picture_is_refused(tiny: VideoBase, dog: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "dog"
    for path in sorted(dog.rglob("*.png")):
        (pictures / path.relative_to(dog)).parent.mkdir(parents=True, exist_ok=True)
        (pictures / path.relative_to(dog)).write_bytes(path.read_bytes())
    subject(tiny, pictures, tmp_path / "run", steps=1)
    (pictures / "0.png").write_bytes((dog / "1.png").read_bytes())
    with pytest.raises(BadConfig, match=r"concept\.files\.0\.png"):
        subject(tiny, pictures, tmp_path / "run", steps=1)


@pytest.mark.parametrize("change", ["mask", "caption"])
def test_changed_mask_or_caption_is_refused(tiny: VideoBase, dog: Path, tmp_path: Path, change: str) -> None:
    pictures = tmp_path / "dog"
    for path in sorted(dog.rglob("*.png")):
        (pictures / path.relative_to(dog)).parent.mkdir(parents=True, exist_ok=True)
        (pictures / path.relative_to(dog)).write_bytes(path.read_bytes())
    subject(tiny, pictures, tmp_path / "run", steps=1)
    if change == "mask":
        (pictures / "masks" / "0.png").unlink()
    else:
        (pictures / "0.txt").write_text("a <dog> on a table", encoding="utf-8")
    with pytest.raises(BadConfig):
        subject(tiny, pictures, tmp_path / "run", steps=1)


def test_restart_begins_anew(tiny: VideoBase, turn: Path, alone: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        motion(tiny, turn, tmp_path, batch=1, on_step=at("motion", 3, cut))
    again = motion(tiny, turn, tmp_path, restart=True)
    assert bytes_of(again) == (alone["turn"] / "turn.safetensors").read_bytes()
    assert rows(tmp_path) == rows(alone["turn"])


def test_forgotten_word_or_caption_can_be_given_after_all(
    tiny: VideoBase, dog: Path, turn: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="--word"):
        subject(tiny, dog, tmp_path / "dog", word=None)
    subject(tiny, dog, tmp_path / "dog", word="dog")
    with pytest.raises(BadInput, match="--caption"):
        motion(tiny, turn, tmp_path / "turn", caption=None)
    motion(tiny, turn, tmp_path / "turn", caption=CAPTION)


def test_subject_in_a_folder_with_a_space_is_learned_or_refused(tiny: VideoBase, dog: Path, tmp_path: Path) -> None:
    try:
        (vectors,) = subject(tiny, dog, tmp_path, name="my dog").sets["word"].parameters()
    except BadInput:
        return
    assert not torch.equal(vectors[0], tiny.token_vectors("dog").mean(0))


# -- stopped and continued --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "step"), [("word", 1), ("word", 2), ("word", 4), ("identity", 1), ("identity", 3)])
def test_subject_that_was_cut_off_ends_in_the_same_bytes(
    tiny: VideoBase, dog: Path, alone: Mapping[str, Path], tmp_path: Path, stage: str, step: int
) -> None:
    with pytest.raises(PowerCut):
        subject(tiny, dog, tmp_path, on_step=at(stage, step, cut))
    told: list[tuple[str, int]] = []
    continued = subject(tiny, dog, tmp_path, on_step=lambda progress: told.append((progress.stage, progress.step)))
    assert bytes_of(continued) == (alone["dog"] / "dog.safetensors").read_bytes()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (alone["dog"] / "metrics.jsonl").read_bytes()
    # It went on from the last state, not from the beginning.
    everything = [(name, number) for name in ("word", "identity") for number in range(1, 5)]
    assert told == everything[everything.index((stage, step)) + 1 - step % 2 :]


def test_power_cut_before_any_write_changes_nothing(
    tiny: VideoBase, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"steps": 1, "batch": 1}
    expected = bytes_of(subject(tiny, dog, tmp_path / "alone", **how))
    replace, writes = os.replace, 0
    while True:
        folder, left = tmp_path / str(writes), writes

        def failing(source: str, target: str) -> None:
            nonlocal left
            if left == 0:
                raise PowerCut
            left -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            try:
                subject(tiny, dog, folder, **how)
                break
            except PowerCut:
                pass
        assert bytes_of(subject(tiny, dog, folder, **how)) == expected, f"before write {writes}"
        assert rows(folder) == [("word", 1), ("identity", 1)]
        writes += 1
    assert writes >= 10  # recipe, three pictures, state and checkpoint of two stages, facts, result


@pytest.mark.parametrize(
    ("module", "full_at"),
    [
        pytest.param(run, 2, id="the second state"),
        pytest.param(file, 1, id="the first checkpoint"),
        pytest.param(file, 2, id="the last checkpoint"),
        pytest.param(file, 3, id="the result"),
    ],
)
def test_full_disk_leaves_whole_files_and_the_run_goes_on(
    tiny: VideoBase, turn: Path, alone: Mapping[str, Path], tmp_path: Path, module: Any, full_at: int
) -> None:
    write, saved = module.save_file, []

    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        write(tensors, path, metadata=metadata)
        saved.append(path)
        if len(saved) == full_at:
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises((OSError, BadInput)):
            motion(tiny, turn, tmp_path)
    assert len(saved) == full_at
    assert (tmp_path / "state" / "newest.safetensors").exists()
    assert not (tmp_path / "turn.safetensors").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    for path in (tmp_path / "checkpoints").glob("*"):
        load(path)
    assert bytes_of(motion(tiny, turn, tmp_path)) == (alone["turn"] / "turn.safetensors").read_bytes()
    assert rows(tmp_path) == rows(alone["turn"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_saves_and_says_how_to_go_on(
    tiny: VideoBase, dog: Path, alone: Mapping[str, Path], tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        subject(tiny, dog, tmp_path, on_step=at("identity", 2, lambda: signal.raise_signal(number)))
    # The signal came after step 2 was done: step 3 is finished and saved though none was due.
    assert str(caught.value) == "stopped after step 3 of 4 of stage identity; the same command goes on from here"
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is before
    assert rows(tmp_path)[-1] == ("identity", 3)
    told: list[tuple[str, int]] = []
    continued = subject(tiny, dog, tmp_path, on_step=lambda progress: told.append((progress.stage, progress.step)))
    assert told == [("identity", 4)]
    assert bytes_of(continued) == (alone["dog"] / "dog.safetensors").read_bytes()


def test_signal_in_the_last_step_of_a_stage_stops_between_stages(
    tiny: VideoBase, dog: Path, alone: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted, match="stopped after step 4 of 4 of stage word"):
        subject(tiny, dog, tmp_path, on_step=at("word", 3, lambda: signal.raise_signal(signal.SIGTERM)))
    assert bytes_of(subject(tiny, dog, tmp_path)) == (alone["dog"] / "dog.safetensors").read_bytes()


def test_signal_in_the_very_last_step_changes_nothing(tiny: VideoBase, turn: Path, tmp_path: Path) -> None:
    motion(tiny, turn, tmp_path, on_step=at("motion", 3, lambda: signal.raise_signal(signal.SIGTERM)))
    assert (tmp_path / "turn.safetensors").exists()


def test_second_signal_acts_as_usual(tiny: VideoBase, turn: Path, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # A shell starts what runs in its background deaf to SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            motion(tiny, turn, tmp_path, on_step=at("motion", 1, twice))
    finally:
        signal.signal(signal.SIGINT, before)


# -- other processes --------------------------------------------------------------------------------------------------

LONGER = {"steps": 15, "batch": 2, "save_every": 4}
LEARN_BOTH = f"""
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dreamvideo import api, bases
base, how = bases.load("tiny"), [{{"train": {LONGER}}}]
dog, turn, out = map(Path, sys.argv[1:])
api.learn(base, dog, method="dreamvideo-subject", word="dog", out=out / "dog", settings=how)
api.learn(base, turn, method="dreamvideo-motion", caption={CAPTION!r}, out=out / "turn", settings=how)
"""


def killed_at(command: list[str], metrics: Path, *, stage: str, step: int, by: signal.Signals) -> tuple[int, str]:
    """Run a command, send it a signal once its metrics tell of a step; its exit code and what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    row, deadline = f'"name": "{stage}", "step": {step},', time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and row in metrics.read_text(encoding="utf-8"):
            process.send_signal(by)
            break
        time.sleep(0.001)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def finished(command: list[str], **environment: str) -> tuple[int, str]:
    """Run a command that has children of its own; its exit code and what it said. None of them outlives the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return code, said.read()


def free_port() -> int:
    """A port of 127.0.0.1 on which processes of this machine can meet; skips where they cannot."""
    with socket.socket() as listening, socket.socket() as calling:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        try:
            calling.connect(listening.getsockname())
        except OSError as error:
            pytest.skip(f"this machine has no loopback network ({error})")
        return int(listening.getsockname()[1])


def test_killed_in_every_stage_and_continued_is_the_same_bytes(
    tiny: VideoBase, dog: Path, turn: Path, tmp_path: Path
) -> None:
    draw, out = random.Random(0), tmp_path / "killed"
    command = [sys.executable, "-c", LEARN_BOTH, str(dog), str(turn), str(out)]
    for name, stage in (("dog", "word"), ("dog", "identity"), ("turn", "motion")):
        metrics = out / name / "metrics.jsonl"
        code, said = killed_at(command, metrics, stage=stage, step=draw.randint(1, 11), by=signal.SIGKILL)
        assert code == -signal.SIGKILL, said
    for learn, source, name in ((subject, dog, "dog"), (motion, turn, "turn")):
        continued = learn(tiny, source, out / name, **LONGER)
        undisturbed = learn(tiny, source, tmp_path / name, **LONGER)
        assert bytes_of(continued) == bytes_of(undisturbed)
        assert (out / name / "metrics.jsonl").read_bytes() == (tmp_path / name / "metrics.jsonl").read_bytes()


def test_ctrl_c_at_the_command_line(tiny: VideoBase, turn: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dreamvideo", "motion", str(turn), "--base", "tiny", "--caption", CAPTION]
    command += ["--out", str(tmp_path)]
    settings = {**LONGER, "steps": 60}
    command += [part for name, value in settings.items() for part in ("--set", f"train.{name}={value}")]
    code, said = killed_at(command, tmp_path / "metrics.jsonl", stage="motion", step=5, by=signal.SIGINT)
    assert code == 130, said
    assert "the same command goes on from here" in said.splitlines()[-1]
    assert "Traceback" not in said
    done = len(rows(tmp_path))
    assert rows(tmp_path) == [("motion", step) for step in range(1, done + 1)]
    told: list[int] = []
    motion(tiny, turn, tmp_path, **settings, on_step=lambda progress: told.append(progress.step))
    assert told == list(range(done + 1, 61))


def test_two_processes_average_their_gradients(
    tiny: VideoBase, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, alike, one = (tmp_path / name for name in ("both", "alike", "one"))
    settings = {"train.steps": 3, "train.batch": 1, "train.accumulate": 2, "train.save_every": 2}
    # Where `auto` finds no accelerator, processes have no device to meet by: they meet on the CPU.
    device = "cpu" if torch.accelerator.is_available() else "auto"
    subject(tiny, dog, both, steps=1)  # to be begun anew, by one of them
    # Addresses only: the machine's own name need not be known to anyone, itself included.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "static"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "--local-addr", "127.0.0.1"]
    command += ["-m", "dreamvideo", "subject", str(dog), "--word", "dog", "--base", "tiny", "--device", device]
    command += ["--out", str(both), "--restart"]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    code, said = finished(command, GLOO_SOCKET_IFNAME=loopback)
    assert code == 0, said
    assert said.count("random weights") == said.count(str(both / "dog.safetensors")) == 1, said
    assert json.loads((both / "run.json").read_text(encoding="utf-8"))["processes"] == 2
    assert rows(both) == [(stage, step) for stage in ("word", "identity") for step in (1, 2, 3)]

    # One process that takes the batches of both in the order in which they are dealt out, with each one's draws.
    def drawn(seed: int, stage: str, step: int, micro: int, process: int) -> torch.Generator:
        assert process == 0
        return generator(seed, stage, step, micro // 2, micro % 2)

    how = {"steps": 3, "batch": 1, "save_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(train, "generator", drawn)
        together = subject(tiny, dog, alike, **how, accumulate=4)
    learned = load(both / "dog.safetensors")
    assert_near(learned, together, within=1e-8)
    apart = tensors_of(subject(tiny, dog, one, **how, accumulate=2))
    assert max((apart[name] - tensor).abs().max() for name, tensor in tensors_of(learned).items()) > 1e-6


# -- what cannot go on ------------------------------------------------------------------------------------------------


def spoilt(base: VideoBase, monkeypatch: pytest.MonkeyPatch, *, at_call: int, value: float) -> None:
    """The base's prediction is not finite from a call on."""
    predict, calls = base.predict, 0

    def predicted(x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return predict(x_t, t, text) * (value if calls >= at_call else 1.0)

    monkeypatch.setattr(base, "predict", predicted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    tiny: VideoBase, turn: Path, alone: Mapping[str, Path], tmp_path: Path, value: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoilt(tiny, patch, at_call=4, value=value)
        with pytest.raises(RunFailed) as caught:
            motion(tiny, turn, tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("the loss is not finite at step 4 of stage motion; the last good state is kept in ")
    assert caught.value.exit_code == 1
    assert rows(tmp_path) == [("motion", 1), ("motion", 2), ("motion", 3)]
    assert not (tmp_path / "turn.safetensors").exists()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert all(tensor.isfinite().all() for tensor in tensors_of(load(checkpoint)).values())
    # With what spoilt it gone, the run goes on from the good state.
    assert bytes_of(motion(tiny, turn, tmp_path)) == (alone["turn"] / "turn.safetensors").read_bytes()


@pytest.mark.parametrize("step", [2, 4], ids=["on the way", "in the last step"])
def test_nothing_that_is_not_finite_is_saved(
    tiny: VideoBase, turn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    # The loss is finite and the gradient is not, just before a state is due.
    average, calls = processes.average, 0

    def broken(here: PartialState, parameters: list[nn.Parameter]) -> None:
        nonlocal calls
        calls += 1
        average(here, parameters)
        if calls == step:
            parameters[0].grad.fill_(float("nan"))

    monkeypatch.setattr(processes, "average", broken)
    with pytest.raises(RunFailed):
        motion(tiny, turn, tmp_path)
    assert not (tmp_path / "turn.safetensors").exists()
    for path in tmp_path.rglob("*.safetensors"):
        if path.parent.name == "checkpoints":
            assert all(tensor.isfinite().all() for tensor in tensors_of(load(path)).values())
    assert (tmp_path / "state" / "newest.safetensors").exists() == (step == 4)


def test_advice_names_the_setting_of_the_stage(tiny: VideoBase, dog: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoilt(tiny, patch, at_call=1, value=float("nan"))
        with pytest.raises(RunFailed) as caught:
            subject(tiny, dog, tmp_path)
    assert "method.lr=" not in str(caught.value)


def test_exit_codes_of_the_command_line(
    tiny: VideoBase, turn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*more: str) -> tuple[int, str]:
        words = ["dreamvideo", "motion", str(turn), "--caption", CAPTION, "--out", str(tmp_path), "--steps", "2", *more]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), capsys.readouterr().err.splitlines()[-1]

    monkeypatch.setattr(bases, "load", lambda *args, **options: tiny)
    with monkeypatch.context() as patch:
        spoilt(tiny, patch, at_call=2, value=float("nan"))
        code, said = command()
    assert (code, said[:48]) == (1, "dreamvideo: the loss is not finite at step 2 of ")
    code, said = command("--set", "train.batch=3")
    assert code == 2
    assert said.startswith(f"dreamvideo: {tmp_path} holds a run of another recipe (train.batch: 1 -> 3)")
    assert command("--set", "train.bach=3")[0] == 2
    assert command()[0] == 0
    assert (tmp_path / "turn.safetensors").exists()


# -- how it learns ----------------------------------------------------------------------------------------------------


class Recorder(torch.optim.AdamW):
    """AdamW that remembers what it was given."""

    rates: list[float]
    gradients: list[list[Tensor]]

    def step(self, closure: None = None) -> None:
        (group,) = self.param_groups
        type(self).rates.append(group["lr"])
        type(self).gradients.append([parameter.grad.clone() for parameter in group["params"]])
        super().step(closure)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    kind = type("Fresh", (Recorder,), {"rates": [], "gradients": []})
    monkeypatch.setattr(torch.optim, "AdamW", kind)
    return kind


def test_learning_rate_warms_up_and_then_is_constant(
    tiny: VideoBase, dog: Path, tmp_path: Path, recorder: type[Recorder]
) -> None:
    subject(tiny, dog, tmp_path, steps=12, batch=1)
    warm = [number / 10 for number in range(1, 11)] + [1.0, 1.0]
    assert recorder.rates == pytest.approx([1e-4 * part for part in warm] + [1e-5 * part for part in warm])


def test_learning_rate_without_warm_up(tiny: VideoBase, turn: Path, tmp_path: Path, recorder: type[Recorder]) -> None:
    motion(tiny, turn, tmp_path, steps=2, warmup=0)
    assert recorder.rates == pytest.approx([1e-5, 1e-5])


def test_continued_run_warms_up_from_where_it_was(
    tiny: VideoBase, turn: Path, tmp_path: Path, recorder: type[Recorder]
) -> None:
    with pytest.raises(PowerCut):
        motion(tiny, turn, tmp_path, on_step=at("motion", 2, cut))
    recorder.rates.clear()
    motion(tiny, turn, tmp_path)
    assert recorder.rates == pytest.approx([0.3e-5, 0.4e-5])


def test_optimizer_is_the_papers(tiny: VideoBase, turn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    made = torch.optim.AdamW.__init__

    def initialised(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        seen.extend(self.param_groups)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", initialised)
    motion(tiny, turn, tmp_path, steps=1)
    (group,) = seen
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.0)
    assert not group["amsgrad"]


@pytest.fixture
def without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example has one loss, whatever is drawn beside it."""

    def noised(draw: Draw, x0: Tensor, *, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        t, noise = torch.full((len(x0),), 300), torch.sin(50 * x0)
        return draw.process.noisy(x0, noise, t), t, noise

    monkeypatch.setattr(Draw, "noised", noised)
    monkeypatch.setattr(Draw, "posterior", lambda draw, mean, std: mean)


def test_accumulated_batches_are_one_larger_batch(
    tiny: VideoBase, dog: Path, tmp_path: Path, recorder: type[Recorder], without_chance: None
) -> None:
    large = subject(tiny, dog, tmp_path / "large", steps=2, batch=3)
    whole = list(recorder.gradients)
    recorder.gradients.clear()
    small = subject(tiny, dog, tmp_path / "small", steps=2, batch=1, accumulate=3)
    assert len(whole) == len(recorder.gradients) == 4
    for one, other in zip(whole, recorder.gradients, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)
    assert rows(tmp_path / "small") == rows(tmp_path / "large")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("large", "small")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert large.meta.steps == small.meta.steps


def test_gradients_are_clipped_to_a_norm(tiny: VideoBase, turn: Path, tmp_path: Path, recorder: type[Recorder]) -> None:
    motion(tiny, turn, tmp_path / "free", steps=1)
    motion(tiny, turn, tmp_path / "clipped", steps=1, clip=1e-3)
    free, clipped = (torch.cat([g.flatten() for g in gradients]) for gradients in recorder.gradients)
    assert free.norm() > 2e-3
    torch.testing.assert_close(clipped, free * 1e-3 / free.norm(), rtol=1e-3, atol=1e-9)


def test_every_batch_has_draws_of_its_own(
    tiny: VideoBase, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noised, seen = Draw.noised, []

    def remembered(draw: Draw, x0: Tensor, *, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        assert offset == 0.1
        x_t, t, noise = noised(draw, x0, offset=offset)
        seen.extend(noise.flatten(1))
        return x_t, t, noise

    monkeypatch.setattr(Draw, "noised", remembered)
    subject(tiny, dog, tmp_path, steps=3, accumulate=2)
    # Two stages of three steps of two batches of two samples.
    assert len(seen) == len({tuple(noise.tolist()) for noise in seen}) == 2 * 3 * 2 * 2


def test_rematerialised_run_learns_the_same(
    tiny: VideoBase, turn: Path, alone: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, asked = tiny.predict, []

    def predicted(*args: Tensor) -> Tensor:
        asked.append(tiny.givens.rematerialise)
        return predict(*args)

    monkeypatch.setattr(tiny, "predict", predicted)
    again = motion(tiny, turn, tmp_path, rematerialise=True)
    assert asked == [True] * 4
    assert_near(again, load(alone["turn"] / "turn.safetensors"), within=1e-5)
    # Adam's first steps have the learning rate's size, so compare far below that too.
    assert_near(again, load(alone["turn"] / "turn.safetensors"), within=2e-7)


def test_dropout_is_decided_by_the_seed_and_survives_being_cut_off(
    tiny: VideoBase, turn: Path, alone: Mapping[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    first = motion(tiny, turn, tmp_path / "first", dropout=0.3)
    torch.manual_seed(2)
    with pytest.raises(PowerCut):
        motion(tiny, turn, tmp_path / "cut", dropout=0.3, on_step=at("motion", 3, cut))
    assert bytes_of(motion(tiny, turn, tmp_path / "cut", dropout=0.3)) == bytes_of(first)
    plain = tensors_of(load(alone["turn"] / "turn.safetensors"))
    assert not all(torch.equal(plain[name], tensor) for name, tensor in tensors_of(first).items())


def test_dropout_leaves_global_randomness_alone(tiny: VideoBase, turn: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    motion(tiny, turn, tmp_path, dropout=0.3, steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_previews_are_written_and_change_nothing_that_is_learned(
    tiny: VideoBase, dog: Path, alone: Mapping[str, Path], tmp_path: Path
) -> None:
    how = {"preview_every": 3, "dropout": 0.2}
    shown = tensors_of(subject(tiny, dog, tmp_path / "shown", **how))
    hidden = tensors_of(subject(tiny, dog, tmp_path / "hidden", **{**how, "preview_every": 0}))
    assert all(torch.equal(hidden[name], tensor) for name, tensor in shown.items())
    samples = sorted(path.name for path in (tmp_path / "shown" / "samples").iterdir())
    assert samples == ["identity-000003.mp4", "word-000003.mp4"]
    assert not (tmp_path / "hidden" / "samples").exists()


def test_previews_are_sampled_without_dropout(
    tiny: VideoBase, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training: list[bool] = []

    def sampled(base: VideoBase, *args: Any, **options: Any) -> Any:
        layers = (module for module in base.parts.denoiser.modules() if isinstance(module, nn.Dropout))
        training.append(any(layer.training for layer in layers))
        return real(base, *args, **options)

    real = api.sample.generate
    monkeypatch.setattr(api.sample, "generate", sampled)
    subject(tiny, dog, tmp_path, dropout=0.5, preview_every=4)
    assert training == [False, False]


def test_half_precision_base_is_learned_on_in_float32(
    tiny: VideoBase, dog: Path, turn: Path, tmp_path: Path, alone: Mapping[str, Path]
) -> None:
    tiny.save(tmp_path / "tiny")
    half = bases.load(str(tmp_path / "tiny"), dtype="bf16")
    small = {"data": {"frames": 4, "height": 16, "width": 16}}
    learned = api.learn(
        half, dog, method="dreamvideo-subject", word="dog", out=tmp_path / "dog", settings=[{"train": QUICK}, small]
    )
    moved = api.learn(
        half, turn, method="dreamvideo-motion", caption=CAPTION, out=tmp_path / "turn",
        settings=[{"train": QUICK}, small],
    )  # fmt: skip
    for concept, name in ((learned, "dog"), (moved, "turn")):
        assert all(tensor.dtype == torch.float32 for tensor in tensors_of(concept).values())
        assert config.read_toml(tmp_path / name / "recipe.toml")["base"]["dtype"] == "bf16"
        # The updates are far below what half precision can hold beside the values: they must not be lost.
        full = tensors_of(load(alone[name] / f"{name}.safetensors"))
        assert all((tensor - full[key]).abs().max() < 1.1e-4 for key, tensor in tensors_of(concept).items())
    up = [tensor for key, tensor in tensors_of(learned).items() if ".up." in key]
    assert all(tensor.any() for tensor in up)
    assert {parameter.dtype for parameter in half.parts.denoiser.parameters()} == {torch.bfloat16}


def test_precision_that_the_device_cannot_compute_in_is_refused(tiny: VideoBase, tmp_path: Path) -> None:
    tiny.save(tmp_path / "tiny")
    with pytest.raises(BadInput, match=r"fp16.*fp32 or bf16"):
        bases.load(str(tmp_path / "tiny"), dtype="fp16")
    with pytest.raises(BadInput, match=r"fp8.*use int8"):
        bases.load(str(tmp_path / "tiny"), dtype="fp8", device="mps")
