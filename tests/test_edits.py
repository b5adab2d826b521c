"""Edits: masks, atlases, the layer, CLIP's losses, Text2LIVE whole, and its way through the command line."""

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_flow import texture
from torch import Tensor

import dreamvideo as dv
from dreamvideo import bases, bundled, catalogue, config, editing, edits, features, flow, media, recipe
from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import generator
from dreamvideo.edits import clip, judge, unwrapping
from dreamvideo.edits.atlas import Atlas, AtlasConfig
from dreamvideo.edits.edit import Edited, Task
from dreamvideo.edits.generator import Generator
from dreamvideo.edits.layer import Layer
from dreamvideo.edits.text2live import Text2Live
from dreamvideo.edits.video_p2p import VideoP2P
from dreamvideo.errors import BadConfig, BadInput, Interrupted, MissingWeights, RunFailed, Unsupported
from dreamvideo.progress import Progress

CLIP = str(bundled.bundled()["emojiworld"].parent / "emojiworld-clip")
ATLAS = AtlasConfig(
    steps=6, lr=2e-3, points=64, width=16, bands=4, settle=2, rigid_steps=3, rigid_reach=4, mask_steps=3
)
SMALL = Text2Live(
    atlas=ATLAS, clip=CLIP, texture=32, scales=2, channels=8, steps=3, views=2, templates=("{}",), screens=("{}",)
)
SETTINGS = [
    {"edit": {**config.plain(SMALL), "atlas": config.plain(ATLAS)}, "clip": {"frames": 4, "height": 16, "width": 16}}
]


def crossing(*, pan: int = 0) -> tuple[Tensor, Tensor]:
    """Six frames in which a bright square crosses a textured ground, and where it is."""
    ground, square = 0.5 * texture(48, 90), 0.5 + 0.5 * texture(12, 12, seed=1)
    frames, masks = [], []
    for number in range(6):
        frame, mask = ground[..., pan * number : pan * number + 48].clone(), torch.zeros(1, 1, 48, 48)
        columns = slice(2 + 6 * number, 14 + 6 * number)
        frame[..., 18:30, columns], mask[..., 18:30, columns] = square, 1
        frames.append(frame)
        masks.append(mask)
    return torch.cat(frames), torch.cat(masks)


def ended(work: Any) -> tuple[list[Progress], Any]:
    """What is told on the way, and the result."""
    told = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return told, end.value


def overlap(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one + other).clamp(max=1).sum())


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pan", [0, 2])
def test_what_moves_against_the_background_is_found(pan: int) -> None:
    frames, masks = crossing(pan=pan)
    onward, back = flow.optical_flow(frames[:-1], frames[1:]), flow.optical_flow(frames[1:], frames[:-1])
    found = flow.moving(frames, onward, flow.trusted(onward, back))
    assert set(found.unique().tolist()) == {0, 1}
    assert overlap(found, masks) > 0.6


# -- atlases ----------------------------------------------------------------------------------------------------------


def test_pixels_and_points() -> None:
    atlas = Atlas(ATLAS, frames=4, height=10, width=20)
    points = atlas.points(atlas.every_pixel()).view(4, 10, 20, 3)
    assert points[0, 0, 0].tolist() == pytest.approx([-1, -1, -1])
    assert points[3, 9, 19].tolist() == pytest.approx([0.9, -0.1, 0.5])
    assert [len(network.layers) for network in (*atlas.maps, atlas.opacity, atlas.picture)] == [6, 4, 8, 8]
    alpha = atlas.alpha(torch.randn(500, 3) * 9)
    assert alpha.min() > 0 and alpha.max() < 1


def test_a_rigid_map_is_least_stretched() -> None:
    here = torch.randn(5, 2)
    angle = torch.tensor(0.7)
    turned = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    rigid = unwrapping._stretch(here, here + turned[0], here + turned[1])
    assert rigid.item() == pytest.approx(2 * 2**0.5, rel=1e-2)
    for scale in (0.5, 2.0):
        assert unwrapping._stretch(here, here + scale * turned[0], here + scale * turned[1]) > rigid
    far = unwrapping._stretch(here, here + 8 * turned[0], here + 8 * turned[1], reach=8)
    assert far.item() == pytest.approx(rigid.item(), rel=1e-4)


def test_the_clip_knows_where_its_pixels_go() -> None:
    frames, masks = crossing()
    seen = unwrapping._Clip.of(frames, masks)
    onward, back = seen.ways
    assert onward.shape == back.shape == (6, 48, 48, 3)
    assert onward[:5, ..., 2].eq(1).all() and back[1:, ..., 2].eq(-1).all()
    assert seen.sure[0][5].eq(0).all() and seen.sure[1][0].eq(0).all()
    # The square's middle moves by six pixels a frame.
    assert onward[2, 24, 20].tolist() == pytest.approx([6, 0, 1], abs=0.5)


def test_atlases_learn_the_clip_and_part_its_layers() -> None:
    frames, masks = (F.interpolate(part, (24, 24), mode="area") for part in crossing())
    masks = masks.round()
    quick = replace(ATLAS, steps=300, lr=4e-3, points=128, width=32, settle=10, rigid_steps=50, mask_steps=300)
    told, atlas = ended(unwrapping.unwrapped(frames, masks, quick, seed=0))
    assert [update.stage for update in told] == ["settling"] * 60 + ["atlas"] * 300
    assert told[-1].loss < 0.3 * told[60].loss
    error = (atlas.painted() - frames).square().mean()
    assert error < 0.4 * (frames.mean(dim=(0, 2, 3), keepdim=True) - frames).square().mean()
    _, _, alpha = atlas.layout()
    assert overlap(alpha.round(), masks) > 0.7


def test_one_frame_has_an_atlas_too() -> None:
    frames, _ = crossing()
    _, atlas = ended(unwrapping.unwrapped(frames[:1], None, ATLAS, seed=0))
    assert atlas.painted().isfinite().all()


# -- the layer --------------------------------------------------------------------------------------------------------


def test_a_layer_shows_what_is_painted_on_its_picture() -> None:
    """The picture itself, painted on, is what the frames show of it."""
    atlas = Atlas(ATLAS, frames=6, height=24, width=24).requires_grad_(False)
    for number, which in enumerate(("foreground", "background")):
        # The layer is nearly all of every pixel.
        atlas.opacity.layers[-1].bias.fill_(2 - 4 * number)
        foreground, background, alpha = atlas.layout()
        share = 1 - alpha if number else alpha
        layer = Layer.of(atlas, which, side=800)
        opaque = torch.cat([layer.picture, torch.ones_like(layer.picture[:, :1])], dim=1)
        shown = layer.shown(opaque)
        colours = atlas.colours(foreground.flatten(0, 2), background.flatten(0, 2))[number]
        colours = colours.view(6, 24, 24, 3).permute(0, 3, 1, 2)
        assert share.min() > 0.5
        assert torch.allclose(shown[:, 3:], share, atol=1e-5)
        assert (shown[:, :3] - colours).abs().max() < 0.02
        window = layer.cut([1, 3], 4, 2, 18, 20, crop=True)
        opaque = torch.cat([window.picture, torch.ones_like(window.picture[:, :1])], dim=1)
        same = shown[[1, 3], :, 4:22, 2:22]
        assert (window.shown(opaque) - same).abs().max() < 1e-4
        assert window.picture.numel() <= layer.picture.numel()
        assert layer.cut([0], 0, 0, 24, 24, crop=False).picture is layer.picture


@pytest.mark.parametrize("height, width", [(32, 32), (17, 45), (3, 5)])
def test_the_generator_takes_any_size(height: int, width: int) -> None:
    said = Generator(scales=3, channels=8)(torch.rand(1, 3, height, width))
    assert said.shape == (1, 4, height, width)
    assert said.min() > 0 and said.max() < 1


# -- CLIP's losses ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eye() -> clip.Clip:
    return clip.load(bases.load("tiny"), CLIP)


def test_clip_says_what_the_metrics_hear(eye: clip.Clip) -> None:
    images, texts = features.clip(CLIP)
    frames = np.random.default_rng(0).integers(0, 256, (2, eye.side, eye.side, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    assert torch.allclose(eye.pictures(pixels), images(frames), atol=1e-5)
    assert torch.allclose(eye.texts(["a frog", "a lion"]), texts(["a frog", "a lion"]), atol=1e-6)
    vision = eye.model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    assert eye.tokens(pixels).shape == (2, vision.num_hidden_layers - 1, patches, vision.hidden_size)


def test_losses_by_hand() -> None:
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    # On the unit circle the chord of a right angle has the half angle's sine: 2 (pi / 4)^2, and 0.
    assert clip.distance(x, y).item() == pytest.approx((2 * (torch.pi / 4) ** 2) / 2, rel=1e-4)
    assert clip.direction(y[:1], x, torch.tensor([-2.0, 2.0])).item() == pytest.approx(0, abs=1e-6)
    assert clip.direction(y[:1], x, torch.tensor([2.0, -2.0])).item() == pytest.approx(2)
    tokens = torch.randn(2, 3, 5, 8)
    assert clip.structure(tokens, 3 * tokens).item() == pytest.approx(0, abs=1e-10)
    assert clip.structure(tokens, tokens.flip(2)) > 0.01


def test_views_begin_with_the_whole_picture_and_are_the_same_for_all() -> None:
    look = clip.views(5, 16, generator("views"))
    pictures = texture(24, 24).expand(2, -1, -1, -1)
    seen = look(pictures)
    assert seen.shape == (10, 3, 16, 16)
    assert torch.equal(seen[:5], seen[5:])
    assert len({tuple(view.flatten().tolist()) for view in seen[:5]}) == 5
    plain = clip.Views(24, torch.eye(3)[None], torch.eye(3, 4)[None])
    assert torch.allclose(plain(pictures), pictures, atol=1e-5)


def test_a_perspective_takes_corners_to_corners() -> None:
    inwards = [(0.1, 0.2), (0.0, 0.3), (0.4, 0.0), (0.2, 0.1)]
    matrix = clip._perspective(inwards)
    for (u, v), (dx, dy) in zip(((-1, -1), (1, -1), (1, 1), (-1, 1)), inwards, strict=True):
        x, y, w = matrix @ torch.tensor([u * (1 - dx), v * (1 - dy), 1.0])
        assert [float(x / w), float(y / w)] == pytest.approx([u, v], abs=1e-5)


def test_tints_leave_greys_grey() -> None:
    for number in range(20):
        tint = clip._tint(generator("tint", number))
        dark, light = (tint[:, :3] @ torch.full((3,), value) + tint[:, 3] for value in (0.2, 0.8))
        assert dark.std() < 1e-5 and light.std() < 1e-5
        assert light.mean() > dark.mean()


def test_an_edit_goes_over_what_is_below() -> None:
    edit = torch.cat([torch.ones(1, 3, 1, 2), torch.tensor([[[[0.0, 0.25]]]])], dim=1)
    assert judge.over(edit, torch.zeros(1, 3, 1, 1))[0, :, 0].tolist() == [[0, 0.25]] * 3


def test_a_clip_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingWeights, match="nowhere at all: neither a folder nor a hub id"):
        clip.load(bases.load("tiny"), "../nowhere at all")


# -- Text2LIVE --------------------------------------------------------------------------------------------------------


def small_task(**changes: Any) -> Task:
    frames, masks = (F.interpolate(part[:4], (16, 16), mode="area") for part in crossing())
    return replace(Task(frames=frames, masks=masks.round(), caption="a box", prompt="a frog"), **changes)


# Name -> a small edit, its stages, and the families that can carry it.
EDITS = {
    "text2live": (SMALL, ["settling"] * 8 + ["atlas"] * 6 + ["edit"] * 3, set(bases.available())),
    "video-p2p": (
        VideoP2P(steps=2, heads=4, sampling_steps=2, null_updates=2, rematerialise=False),
        ["motion"] * 2 + ["inversion"] * 2 + ["null text"] * 2 + ["sampling"] * 2,
        {"inflated"},
    ),
}


@pytest.mark.parametrize("name", sorted(edits.available()))
@pytest.mark.parametrize("family", sorted(bases.available()))
def test_every_edit_on_every_base(family: str, name: str) -> None:
    base, task = bases.available()[family].tiny(0), small_task()
    edit, stages, families = EDITS[name]
    if family not in families:
        with pytest.raises(Unsupported, match=f"not {base.name}") as caught:
            next(edit.edited(base, task, seed=0))
        assert "\n" not in str(caught.value)
        return
    runs = [ended(edit.edited(base, task, seed=seed)) for seed in (0, 0, 1)]
    first, again, other = (result for _, result in runs)
    assert edits.find(name) is type(edit)
    assert [update.stage for update in runs[0][0]] == stages
    assert first.frames.shape == task.frames.shape
    assert first.frames.min() >= 0 and first.frames.max() <= 1
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)
    assert not torch.equal(first.frames, task.frames)


def test_an_edit_looks_more_like_its_prompt_and_spares_the_other_layer(eye: clip.Clip) -> None:
    task = small_task()
    edit = replace(SMALL, steps=25, channels=16, lr=0.01, atlas=replace(ATLAS, steps=100, points=128, mask_steps=100))
    _, result = ended(edit.edited(bases.load("tiny"), task, seed=0))
    wanted = eye.texts([task.prompt])[0]

    def likeness(frames: Tensor) -> float:
        with torch.no_grad():
            seen = eye.pictures(F.interpolate(frames, (eye.side, eye.side), mode="bilinear"))
        return float((seen @ wanted).mean())

    assert likeness(result.frames) > likeness(task.frames) + 0.05
    change = (result.frames - task.frames).abs().mean(dim=1, keepdim=True)
    assert change[task.masks > 0].mean() > 3 * change[task.masks == 0].mean()
    assert result.measured.keys() == {"atlas_psnr"}


def test_a_kept_atlas_is_not_learned_again(tmp_path: Path) -> None:
    base, task = bases.load("tiny"), small_task(keep=tmp_path / "keep")
    first, second = (ended(SMALL.edited(base, task, seed=0)) for _ in range(2))
    assert {update.stage for update in first[0]} == {"settling", "atlas", "edit"}
    assert {update.stage for update in second[0]} == {"edit"}
    assert torch.equal(first[1].frames, second[1].frames)
    background = ended(replace(SMALL, layer="background").edited(base, task, seed=0))
    assert {update.stage for update in background[0]} == {"edit"}
    others = (replace(task, masks=None), replace(task, frames=task.frames.flip(0)))
    for other in others:
        assert {update.stage for update in ended(SMALL.edited(base, other, seed=0))[0]} >= {"atlas"}
    assert len(list((tmp_path / "keep").glob("*.safetensors"))) == 3


def test_a_half_learned_atlas_goes_on_as_if_never_left(tmp_path: Path) -> None:
    frames, masks = small_task().frames, small_task().masks
    _, whole = ended(unwrapping.unwrapped(frames, masks, ATLAS, seed=0))
    for left in (3, 11):  # settling, learning
        file = tmp_path / f"{left}.safetensors"
        work = unwrapping.unwrapped(frames, masks, ATLAS, seed=0, file=file)
        for _ in range(left):
            next(work)
        work.close()
        told, resumed = ended(unwrapping.unwrapped(frames, masks, ATLAS, seed=0, file=file))
        assert len(told) == 8 + 6 - left
        assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
        assert ended(unwrapping.unwrapped(frames, masks, ATLAS, seed=0, file=file))[0] == []


def test_without_its_optimizer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "madgrad", None)
    with pytest.raises(BadInput, match=r"pip install dreamvideo\[edit\]"):
        ended(SMALL.edited(bases.load("tiny"), small_task(), seed=0))


def test_the_defaults_are_the_official_configs() -> None:
    base = bases.load("tiny")
    assert recipe.recipes("text2live") == ("emojiworld", "official", "paper")
    for name in ("official", "paper"):
        assert editing.resolve("text2live", base, recipe=name).edit == Text2Live()


def test_the_catalogue_lists_the_classes() -> None:
    found = edits.available()
    assert {entry.name: entry.recipes for entry in catalogue.edits()} == {name: recipe.recipes(name) for name in found}
    for entry in catalogue.edits():
        assert entry.summary == (found[entry.name].__doc__ or "").splitlines()[0]


# -- from the clip to the video ---------------------------------------------------------------------------------------


@pytest.fixture
def filmed(tmp_path: Path) -> Path:
    """A clip of six frames with its caption and masks beside it."""
    frames, masks = crossing()
    path = tmp_path / "clips" / "box.mp4"
    media.write_video(path, (frames * 255).round().byte().permute(0, 2, 3, 1).numpy(), fps=8)
    path.with_suffix(".txt").write_text("a box crossing")
    folder = path.parent / "masks" / "box"
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray((mask[0] * 255).byte().numpy()).save(folder / f"{number:04d}.png")
    return path


def test_a_clip_is_read_with_its_masks_and_caption(filmed: Path) -> None:
    base = bases.load("tiny")
    wanted = {"frames": 3, "fps": 4, "height": 24, "width": 16}
    sizes = editing.resolve("text2live", base, settings=[{"clip": wanted}]).clip
    source = editing.read(filmed, sizes, caption=None)
    assert config.plain(sizes) == wanted
    assert editing.resolve("text2live", base).clip.fps == base.defaults.fps
    assert source.frames.shape == (3, 3, 24, 16)
    assert source.masks is not None and source.masks.shape == (3, 1, 24, 16)
    assert (source.caption, source.fps, len(source.mask_files)) == ("a box crossing", 4, 6)
    assert editing.read(filmed, sizes, caption="a thing").caption == "a thing"
    longer = editing.read(filmed, replace(sizes, frames=50, fps=8), caption=None)
    assert (len(longer.frames), longer.fps) == (6, 8)
    (filmed.parent / "second.mp4").write_bytes(filmed.read_bytes())
    with pytest.raises(BadInput, match="holds 2 clips"):
        editing.read(filmed.parent, sizes, caption=None)
    (filmed.parent / "masks" / "box" / "0000.png").unlink()
    with pytest.raises(BadInput, match="5 masks for 6 frames"):
        editing.read(filmed, sizes, caption=None)


def test_settings_are_strict_to_the_depth() -> None:
    base = bases.load("tiny")
    for settings, message in (
        ({"edit": {"atlas": {"widht": 3}}}, r"edit\.atlas: .*did you mean width"),
        ({"edit": {"stepz": 3}}, "did you mean steps"),
        ({"train": {"batch": 3}}, "edit, clip"),
        ({"edit": {"layer": "middle"}}, r"edit\.layer"),
        ({"clip": {"frames": 0}}, r"clip\.frames"),
    ):
        with pytest.raises(BadConfig, match=message):
            editing.resolve("text2live", base, settings=[settings])
    nested = editing.resolve("text2live", base, settings=[{"edit": {"atlas": {"width": 3}}}]).edit
    assert nested == Text2Live(atlas=AtlasConfig(width=3))


class _Endless:
    """An edit that tells what it is told to tell."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def edited(self, base: VideoBase, task: Task, *, seed: int) -> Any:
        for step, loss in enumerate(self.losses, start=1):
            yield Progress("work", step, len(self.losses), loss)
        return Edited(frames=task.frames)


def test_an_edit_can_be_left_and_fails_when_it_diverges() -> None:
    base, task = bases.load("tiny"), small_task()
    told: list[Progress] = []

    def stop(progress: Progress) -> None:
        told.append(progress)
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"step 2 of 5.*--keep"):
        editing.perform(_Endless([1.0] * 5), base, task, seed=0, on_step=stop)
    assert len(told) == 2
    with pytest.raises(RunFailed, match="step 3 of 4"):
        editing.perform(_Endless([1.0, 1.0, float("nan"), 1.0]), base, task, seed=0)
    assert editing.perform(_Endless([1.0]), base, task, seed=0).frames is task.frames


def test_a_video_says_what_made_it_and_is_made_again(filmed: Path, tmp_path: Path) -> None:
    base = bases.load("tiny")
    video = dv.edit(base, filmed, "a frog crossing", settings=SETTINGS, seed=2)
    assert video.frames.shape == (4, 16, 16, 3)
    path = video.save(tmp_path / "edit.mp4")
    made: Mapping[str, Any] = json.loads(path.with_name("edit.mp4.json").read_text())
    assert (made["caption"], made["prompt"], made["seed"]) == ("a box crossing", "a frog crossing", 2)
    assert (made["edit"]["name"], made["edit"]["atlas"]["width"], len(made["masks"])) == ("text2live", 16, 6)
    again = dv.regenerate(tmp_path / "edit.mp4.json")
    assert np.array_equal(again.frames, video.frames)
    assert again.made == video.made
    mask = filmed.parent / "masks" / "box" / "0003.png"
    Image.new("L", (48, 48), 255).save(mask)
    with pytest.raises(BadInput, match=re.escape(f"{mask} as it was")):
        dv.regenerate(tmp_path / "edit.mp4.json")


def test_the_command(filmed: Path, tmp_path: Path, run: Any) -> None:
    config.write_toml(tmp_path / "small.toml", SETTINGS[0])
    common = ["edit", filmed, "a frog crossing", "--base", "tiny", "--recipe", "small.toml"]
    code, out, err = run(*common, "--out", "made/x.gif", "--set", "edit.steps=2", "--json")
    assert code == 0, err
    assert json.loads(out)["video"] == "made/x.gif"
    assert json.loads(Path("made/x.gif.json").read_text())["edit"]["steps"] == 2
    assert run("edits", "--json")[0] == 0
    filmed.with_suffix(".txt").unlink()
    for words, message in (
        (common, "--caption"),
        (["edit", "nowhere.mp4", "a frog", "--base", "tiny"], "nowhere.mp4"),
        ([*common, "--method", "text2life"], "did you mean text2live"),
        ([*common, "--set", "edit.stepz=2"], "did you mean steps"),
        ([*common, "--caption", "a box", "--out", "x.xyz", "--set", "edit.steps=1"], ".xyz"),
    ):
        code, out, err = run(*words)
        lines = [line for line in err.splitlines() if line.startswith("dreamvideo: ")]
        assert (code, out, len(lines)) == (2, "", 1), (words, err)
        assert message in lines[0]
