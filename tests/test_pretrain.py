"""The making of EmojiWorld, in miniature: every stage learns, goes on where it stopped, and ends in bases that load."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_world import PRETRAIN, toys  # noqa: F401 - a fixture, and the path to pretrain/

from dreamvideo import api, bases, features
from dreamvideo.bundled import card
from dreamvideo.errors import BadInput, RunFailed
from dreamvideo.sample import SampleConfig

judges = pytest.importorskip("judges")
models = pytest.importorskip("models")
train = pytest.importorskip("train")
world = pytest.importorskip("world")
evaluate = pytest.importorskip("evaluate")
assemble = pytest.importorskip("stages.assemble")
stage = pytest.importorskip("stages.stage")

SMALL = replace(
    models.PRESETS["cpu"],
    size=16,
    frames=4,
    narrow=False,
    vae=(8, 8, 8),
    text=(32, 1),
    vision=(32, 1),
    dino=(32, 1),
    patch=8,
    unet=(16, 32),
    head=8,
    learning={name: models.Learning(batch=4, lr=1e-3, chunk=8, reuse=2) for name in train.STAGES},
)


def setup(out: Path, sprites: Path) -> "stage.Setup":
    return stage.Setup(out=out, preset=SMALL, sprites=sprites, device=torch.device("cpu"))


def fit(name: str, made: "stage.Setup", *, steps: int, until: int | None = None) -> Path:
    count = iter(range(1000))
    stopped = (lambda: False) if until is None else (lambda: next(count) >= until)
    return train.fit(train.STAGES[name](made), train.Limits(steps=steps), stopped=stopped)


@pytest.fixture(scope="module")
def made(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Every stage of two steps, assembled."""
    out = tmp_path_factory.mktemp("emojiworld")
    for name in train.STAGES:
        fit(name, setup(out, toys), steps=2)
    assemble.assemble(setup(out, toys))
    return out


def test_every_stage_leaves_its_log_and_its_model(made: Path) -> None:
    for name in train.STAGES:
        lines = [json.loads(line) for line in (made / f"{name}.log.jsonl").read_text().splitlines()]
        assert lines[0]["step"] == 0
        assert (lines[-1]["step"], lines[-1]["done"]) == (2, 1)
        assert any((made / name).iterdir())
    assert {path.stem for path in made.glob("preview-*.png")} == {
        f"preview-{name}" for name in ("vae", "image", "video", "motion")
    }


@pytest.mark.parametrize("name", ["vae", "image"])
def test_stage_goes_on_where_it_was_stopped(
    name: str,
    made: Path,
    toys: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    def weights(out: Path) -> Iterator[torch.Tensor]:
        state = torch.load(out / f"{name}.state.pt", weights_only=True)
        assert state["step"] == 6
        yield from state["model"].values()
        yield from (state["average"] or {}).values()

    outs = [tmp_path / kind for kind in ("at once", "in two")]
    for out in outs:
        out.mkdir()
        for before in {"vae", "clip"} - {name}:
            (out / before).symlink_to(made / before)
    fit(name, setup(outs[0], toys), steps=6)
    fit(name, setup(outs[1], toys), steps=6, until=3)
    fit(name, setup(outs[1], toys), steps=6)
    assert all(torch.equal(*pair) for pair in zip(*map(weights, outs), strict=True))


def test_a_stage_asks_for_those_before_it(toys: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(BadInput, match="run stage vae first"):
        fit("image", setup(tmp_path, toys), steps=1)


def test_what_is_not_finite_is_not_saved(
    toys: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms = train.STAGES["vae"].terms
    monkeypatch.setattr(
        train.STAGES["vae"], "terms", lambda *given: {n: t * float("nan") for n, t in terms(*given).items()}
    )
    with pytest.raises(RunFailed, match="not finite"):
        fit("vae", setup(tmp_path, toys), steps=2)
    assert not (tmp_path / "vae.state.pt").exists()


def test_video_begins_as_the_pictures_it_came_from(made: Path) -> None:
    """The inflated denoiser says of every frame what the image denoiser says of it."""
    image = models.make_image_denoiser(SMALL).eval()
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, text, t = torch.randn(2, 8, 3, 4, 4), torch.randn(2, 24, 32), torch.tensor([3, 500])
    with torch.no_grad():
        frames = torch.stack([image(frame, t, text).sample for frame in x.unbind(2)], dim=2)
        video = models.make_video_denoiser(SMALL, image).eval()(x, t, text).sample
        motion = models.make_motion_denoiser(SMALL, image).eval()
        moved = motion(x, t, text.repeat_interleave(3, dim=0)).sample
    torch.testing.assert_close(video, frames, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved, frames, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["emojiworld", "emojiworld-animatediff"])
def test_assembled_bases_load_and_sample(made: Path, name: str) -> None:
    folder = made / "final" / name
    base = bases.load(str(folder))
    assert (base.defaults.frames, base.defaults.width, base.defaults.fps) == (4, 16, 8)
    assert base.origin.licence == "MIT"
    assert base.parts.image_encoder is not None
    video = api.generate(base, "an apple bouncing on the beach", config=SampleConfig(steps=2))
    assert video.frames.shape == (4, 16, 16, 3)
    images, texts = features.clip(folder / card(folder).encoders["clip"])
    looks = features.dino(folder / card(folder).encoders["dino"])
    assert images(video.frames).shape == (4, 128)
    assert texts(["an apple"]).norm() == pytest.approx(1, abs=1e-5)
    assert looks(video.frames).shape == (4, 32)


def test_every_word_of_the_world_is_one_token(toys: Path) -> None:  # noqa: F811
    vocabulary = world.World(toys, size=16).vocabulary()
    tokenizer = models.make_tokenizer(vocabulary)
    assert all(len(tokenizer(word).input_ids) == 3 for word in vocabulary if word.isalpha())
    text = "a Zebra, näive!"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == "azebra,näive!"


def test_motions_are_told_by_their_paths(toys: Path) -> None:  # noqa: F811
    toy = world.World(toys, size=16)
    motions = judges.Motions(8)
    clips = toy.clips(240, 8, torch.Generator().manual_seed(9))
    found = motions.nearest(clips.centre, clips.scale, clips.angle)
    assert evaluate.accuracy(toy.described(clips)["motion"], found) > 0.95


def test_judge_is_what_it_was_when_saved(toys: Path, tmp_path: Path) -> None:  # noqa: F811
    toy = world.World(toys, size=16)
    judge = judges.Judge(toy.subjects, 16).half().float().eval()
    judge.save(tmp_path)
    again, clips = judges.Judge.load(tmp_path), toy.clips(3, 4, torch.Generator().manual_seed(0))
    one, same = (each.verdict(clips.pixels, judges.Motions(4)) for each in (judge, again))
    assert torch.equal(one.seen.subject, same.seen.subject)
    assert (one.subject, one.place, one.motion) == (same.subject, same.place, same.motion)


def test_prompts_are_spread_evenly() -> None:
    wanted = evaluate.asked(("apple", "bus"), 48, seed=0)
    for place, names in enumerate((("apple", "bus"), world.PLACES, world.MOTIONS)):
        counts = [sum(row[place] == name for row in wanted) for name in names]
        assert sum(counts) == 48
        assert max(counts) - min(counts) <= 1
    assert wanted != evaluate.asked(("apple", "bus"), 48, seed=1)
