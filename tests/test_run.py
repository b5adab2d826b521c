"""A run's folder: recipe, metrics, state, what is refused and what begins anew."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dreamvideo import bases, config, recipe, run
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.file import ConceptFile, Meta, load
from dreamvideo.adapters.graft import AdapterSet, Site
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept
from dreamvideo.diffusion import generator
from dreamvideo.errors import BadConfig, BadInput, DreamVideoError
from dreamvideo.files import whole
from dreamvideo.recipe import Recipe, resolve
from dreamvideo.run import Run, State

SITE = Site("block", "ff", "time", 4)


@pytest.fixture(scope="module")
def tiny() -> VideoBase:
    """One base for all tests here; they leave it as it was."""
    return bases.load("tiny")


@pytest.fixture
def asked(tiny: VideoBase, motion_concept: Concept) -> Callable[..., Recipe]:
    """A recipe with some settings of the loop."""
    return lambda **train: resolve("dreamvideo-motion", tiny, motion_concept, settings=[{"train": train}])


def a_set(seed: int) -> AdapterSet:
    adapters = AdapterSet(Bottleneck(), [SITE])
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, name)))
    return adapters


def a_concept(seed: int = 0) -> ConceptFile:
    meta = Meta(name="turn", role="motion", family="unet3d", base="tiny", method="m", created_by="test")
    return ConceptFile(meta, {"motion": a_set(seed)})


def stepped(adapters: AdapterSet, seed: int) -> torch.optim.AdamW:
    """An optimizer that has seen two gradients."""
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.1)
    for number in range(2):
        step(adapters, optimizer, seed + number)
    return optimizer


def step(adapters: AdapterSet, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for name, parameter in adapters.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator("gradient", seed, name))
    optimizer.step()


def same(first: AdapterSet, second: AdapterSet) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_the_resolved_recipe_is_written(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    Run(tmp_path / "run", asked(batch=3))
    written = config.read_toml(tmp_path / "run" / "recipe.toml")
    assert written == asked(batch=3).plain()
    assert written["method"]["name"] == "dreamvideo-motion"
    assert written["base"] == {"name": "tiny", "family": "unet3d", "dtype": "fp32"}
    assert written["train"]["batch"] == 3
    assert list(written["concept"]["files"]) == ["turn.mp4"]


def test_the_same_recipe_goes_on(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    Run(tmp_path, asked())
    before = everything_in(tmp_path)
    Run(tmp_path, asked())
    assert everything_in(tmp_path) == before


def test_another_recipe_is_refused_by_what_differs_and_nothing_is_touched(
    asked: Callable[..., Recipe], tmp_path: Path
) -> None:
    Run(tmp_path, asked(batch=1)).save_state(State(step=3, tensors={"set/a": torch.ones(2)}))
    before = everything_in(tmp_path)
    with pytest.raises(BadConfig) as caught:
        Run(tmp_path, asked(batch=2))
    assert str(caught.value) == (
        f"{tmp_path} holds a run of another recipe (train.batch: 1 -> 2): "
        "give another --out, or --restart to begin anew"
    )
    assert everything_in(tmp_path) == before


def test_many_differences_are_counted(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    Run(tmp_path, asked())
    with pytest.raises(
        BadConfig, match=r"train\.batch: .*; train\.clip: unset -> 1\.0; train\.seed: 0 -> 1 and 2 more"
    ):
        Run(tmp_path, asked(batch=9, clip=1.0, seed=1, steps=7, warmup=5))


def test_how_often_to_save_and_preview_may_change(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    Run(tmp_path, asked(save_every=3, preview_every=0))
    Run(tmp_path, asked(save_every=5, preview_every=2))


def test_how_often_to_save_is_not_in_the_digest(asked: Callable[..., Recipe]) -> None:
    assert asked(save_every=3).digest == asked(save_every=5).digest


def test_digest_tells_recipes_apart(asked: Callable[..., Recipe]) -> None:
    assert asked().digest == asked().digest
    assert len({asked().digest, asked(batch=7).digest, asked(seed=1).digest}) == 3


def test_unknown_recipe_and_section_are_refused(tiny: VideoBase, motion_concept: Concept, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="--recipe fast: dreamvideo-motion has emojiworld, official, paper; or give a"):
        resolve("dreamvideo-motion", tiny, motion_concept, recipe="fast")
    with pytest.raises(BadConfig, match="there is no section 'trian'; it has method, train, data"):
        resolve("dreamvideo-motion", tiny, motion_concept, settings=[{"trian": {"batch": 1}}])
    own = tmp_path / "own.toml"
    own.write_text("[train]\nbatch = 6\n", encoding="utf-8")
    assert resolve("dreamvideo-motion", tiny, motion_concept, recipe=str(own)).train.batch == 6


def test_several_examples_lay_their_table_over_the_rest(tiny: VideoBase, motion_concept: Concept) -> None:
    several = Concept(**{**vars(motion_concept), "examples": motion_concept.examples * 2})
    one, more = (resolve("dreamvideo-motion", tiny, concept) for concept in (motion_concept, several))
    assert (one.train.batch, one.method.drop_appearance) == (1, 0.5)
    assert (more.train.batch, more.method.drop_appearance) == (2, 0.0)
    set_by_hand = resolve("dreamvideo-motion", tiny, several, settings=[{"train": {"batch": 5}}])
    assert set_by_hand.train.batch == 5


@pytest.mark.parametrize(
    "train",
    [
        {"batch": 0},
        {"accumulate": 0},
        {"steps": 0},
        {"save_every": 0},
        {"preview_every": -1},
        {"warmup": -1},
        {"dropout": 1.5},
        {"clip": 0.0},
        {"weight_decay": -0.1},
    ],
    ids=str,
)
def test_setting_out_of_range_is_refused(asked: Callable[..., Recipe], train: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=f"train.{next(iter(train))}"):
        asked(**train)


# -- beginning anew ---------------------------------------------------------------------------------------------------


def test_restart_forgets_the_run_but_not_the_cache(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    old = Run(tmp_path, asked(batch=1))
    old.save_state(State(step=3, tensors={"set/a": torch.ones(2)}))
    old.checkpoint(a_concept(), "motion", 3)
    old.log({"stage": 0, "step": 1})
    old.finish(a_concept(), torch.device("cpu"), seconds=1.0, processes=1)
    (tmp_path / "samples").mkdir()
    (tmp_path / "cache").mkdir()
    for kept in ("cache/encoded", "notes.txt"):
        (tmp_path / kept).write_text("mine", encoding="utf-8")
    new = Run(tmp_path, asked(batch=2), restart=True)
    assert new.finished() is None
    assert new.load_state() == State()
    assert everything_in(tmp_path).keys() == {"cache/encoded", "notes.txt", "recipe.toml"}
    assert config.read_toml(tmp_path / "recipe.toml")["train"]["batch"] == 2


def test_restart_leaves_a_folder_alone_that_holds_no_run(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mine.wav").write_text("mine", encoding="utf-8")
    Run(tmp_path, asked(), restart=True)
    assert (tmp_path / "samples" / "mine.wav").exists()


# -- metrics ----------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[tuple[int, int]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["stage"], row["step"]) for row in map(json.loads, lines)]


def test_rows_after_the_state_are_dropped(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    before = Run(tmp_path, asked())
    for number, count in ((0, 3), (1, 4)):
        for done in range(1, count + 1):
            before.log({"stage": number, "step": done, "loss": 0.1})
    before.save_state(State(stage=1, step=2, tensors={"set/a": torch.ones(1)}))
    Run(tmp_path, asked()).load_state()
    assert rows(tmp_path) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]


def test_half_a_line_at_the_end_is_dropped(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    before = Run(tmp_path, asked())
    before.log({"stage": 0, "step": 1, "loss": 0.1})
    before.save_state(State(step=2, tensors={"set/a": torch.ones(1)}))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": 0, "st')
    after = Run(tmp_path, asked())
    after.load_state()
    after.log({"stage": 0, "step": 2, "loss": 0.1})
    assert rows(tmp_path) == [(0, 1), (0, 2)]


def test_without_a_state_all_rows_are_dropped(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    before = Run(tmp_path, asked())
    before.log({"stage": 0, "step": 1})
    assert Run(tmp_path, asked()).load_state() == State()
    assert rows(tmp_path) == []


# -- state ------------------------------------------------------------------------------------------------------------


def test_state_takes_a_run_on_as_if_nothing_had_been(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    adapters = a_set(0)
    optimizer = stepped(adapters, 0)
    Run(tmp_path, asked()).save_state(State.of(1, 5, {"motion": adapters}, optimizer, None))
    step(adapters, optimizer, 7)

    restored = Run(tmp_path, asked()).load_state()
    assert (restored.stage, restored.step) == (1, 5)
    again = a_set(99)
    fresh = torch.optim.AdamW(again.parameters(), lr=0.1)
    restored.restore_sets({"motion": again})
    restored.restore_optimizer(fresh, None)
    step(again, fresh, 7)
    assert same(again, adapters)


def test_state_is_a_copy() -> None:
    adapters = a_set(0)
    state = State.of(0, 1, {"motion": adapters})
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.zero_()
    again = a_set(99)
    state.restore_sets({"motion": again})
    assert same(again, a_set(0))


def test_scaler_is_part_of_the_state(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    class Scaler:
        def __init__(self) -> None:
            self.facts: dict[str, float] = {"scale": 1024.0, "_growth_tracker": 3}

        def state_dict(self) -> dict[str, float]:
            return self.facts

        def load_state_dict(self, facts: dict[str, float]) -> None:
            self.facts = facts

    adapters = a_set(0)
    Run(tmp_path, asked()).save_state(State.of(0, 2, {"motion": adapters}, stepped(adapters, 0), Scaler()))
    other = Scaler()
    other.facts = {}
    restored = Run(tmp_path, asked()).load_state()
    restored.restore_optimizer(torch.optim.AdamW(adapters.parameters()), other)
    assert other.facts == {"scale": 1024.0, "_growth_tracker": 3}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_state_knows_whether_it_is_finite(bad: float) -> None:
    adapters = a_set(0)
    optimizer = stepped(adapters, 0)
    assert State.of(0, 1, {"motion": adapters}, optimizer, None).finite
    optimizer.state[adapters.parameters()[0]]["exp_avg"][0] = bad
    assert not State.of(0, 1, {"motion": adapters}, optimizer, None).finite
    assert not State(tensors={"set/a": torch.tensor([1.0, bad])}).finite


# -- the result -------------------------------------------------------------------------------------------------------


def test_finishing_leaves_the_result_and_what_it_took(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    done = Run(tmp_path, asked())
    assert done.finished() is None
    done.save_state(State(tensors={"set/a": torch.ones(1)}))
    done.finish(a_concept(3), torch.device("cpu"), seconds=1.5, processes=2)
    found = done.finished()
    assert found is not None
    assert same(found.sets["motion"], a_set(3))
    assert found.path == tmp_path / "turn.safetensors"
    assert everything_in(tmp_path).keys() == {"recipe.toml", "run.json", "turn.safetensors"}
    facts = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert facts["versions"].keys() == {"dreamvideo", "torch", "diffusers", "transformers"}
    assert facts["versions"]["torch"] == torch.__version__
    assert (facts["device"], facts["processes"], facts["seconds"]) == ("cpu", 2, 1.5)
    assert facts["peak_memory_bytes"] > 10_000_000


def test_checkpoints_are_concepts(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    Run(tmp_path, asked()).checkpoint(a_concept(4), "motion", 20)
    assert same(load(tmp_path / "checkpoints" / "motion-000020.safetensors").sets["motion"], a_set(4))


def test_what_is_written_can_be_read_by_those_whom_the_umask_lets(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    Run(tmp_path, asked()).finish(a_concept(), torch.device("cpu"), seconds=1.0, processes=1)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("recipe.toml", "turn.safetensors")}
    assert modes["turn.safetensors"] == modes["recipe.toml"]


# -- a full disk ------------------------------------------------------------------------------------------------------


def half_a_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """`save_file` on a disk that is full before the end."""
    save_file(tensors, path, metadata=metadata)
    os.truncate(path, path.stat().st_size // 2)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_earlier_state(
    asked: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Run(tmp_path, asked())
    here.save_state(State(step=2, tensors={"set/a": torch.ones(3)}))
    before = everything_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run, "save_file", half_a_file)
        with pytest.raises((OSError, BadInput)):
            here.save_state(State(step=4, tensors={"set/a": torch.zeros(3)}))
    assert everything_in(tmp_path) == before
    assert not [path for path in tmp_path.rglob(".*")]
    assert here.load_state().step == 2


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_fails_halfway_is_not_there(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "deep" / "thing.bin"
    with pytest.raises((OSError, BadInput), match="No space"), whole(target) as draft:
        if kind == "folder":
            draft.mkdir()
            (draft / "0.png").write_text("half", encoding="utf-8")
        else:
            draft.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list((tmp_path / "deep").iterdir()) == []


def test_full_disk_is_explained(asked: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    here = Run(tmp_path, asked())
    monkeypatch.setattr(run, "save_file", full)
    with pytest.raises(DreamVideoError, match="No space left on device"):
        here.save_state(State(step=2, tensors={"set/a": torch.ones(3)}))


def test_folder_that_cannot_be_made_is_explained(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(BadInput, match=r"cannot be written .*choose another place"):
        Run(tmp_path / "file" / "run", asked())


def test_shipped_recipes_are_found() -> None:
    assert recipe.recipes("dreamvideo-subject") == ("emojiworld", "official", "paper")
    assert recipe.recipes("none") == ()
