"""EmojiWorld: the truth that comes with a rendering holds, and all that is in it can be told apart. Made-up sprites."""

import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from dreamvideo.concept import read_concept

PRETRAIN = Path(__file__).parents[1] / "pretrain"
sys.path.insert(0, str(PRETRAIN))
world = pytest.importorskip("world")
sprites = pytest.importorskip("sprites")
concepts = pytest.importorskip("concepts")

ALL_MOTIONS = world.MOTIONS + world.HELD_OUT_MOTIONS
SUBJECTS = {"apple": "fruit", "hourglass": "object", "unicorn": "animal", "fox": "animal"}  # the last is held out


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three discs of different colours, and a half one that is held out."""
    pictures = []
    for number, colour in enumerate(("red", "gold", "white", "orange")):
        image = Image.new("RGBA", (96, 96))
        ImageDraw.Draw(image).pieslice((1, 1, 94, 94), 0, 180 if number == 3 else 360, fill=colour)
        pictures.append(np.array(image.convert("RGBa")).transpose(2, 0, 1))
    rows = [{"name": n, "word": w, "split": "held_out" if n == "fox" else "training"} for n, w in SUBJECTS.items()]
    path = tmp_path_factory.mktemp("sprites") / "toys.safetensors"
    save_file(
        {"sprites": torch.from_numpy(np.stack(pictures)).contiguous()}, path, {"world": json.dumps({"subjects": rows})}
    )
    return path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def middle(mask: Tensor) -> Tensor:
    """(B, 1, F, S, S) -> (B, F, 2): where the weight lies."""
    ticks = (torch.arange(mask.shape[-1]) + 0.5) / mask.shape[-1]
    weight = mask[:, 0].sum((-1, -2))
    return torch.stack([mask[:, 0].sum(-2) @ ticks / weight, mask[:, 0].sum(-1) @ ticks / weight], dim=-1)


# -- renderings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_shapes_and_ranges(toys: Path, size: int) -> None:
    made = world.World(toys, size=size)
    assert made.subjects == ("apple", "hourglass", "unicorn")
    for clips, frames in ((made.clips(6, 5, seeded()), 5), (made.images(6, seeded()), 1)):
        assert clips.pixels.shape == (6, 3, frames, size, size)
        assert clips.mask.shape == (6, 1, frames, size, size)
        assert clips.centre.shape == (6, frames, 2)
        assert clips.scale.shape == clips.angle.shape == (6, frames)
        assert clips.subject.shape == clips.place.shape == clips.motion.shape == (6,)
        assert clips.pixels.abs().max() <= 1
        assert clips.mask.min() == 0
        assert 0.95 < clips.mask.max() <= 1
        assert clips.subject.max() < len(made.subjects)


def test_a_seed_is_a_world(toys: Path) -> None:
    made = world.World(toys, size=32)
    one, same, other = (made.clips(8, 4, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.pixels, same.pixels)
    assert one.captions == same.captions
    assert not torch.equal(one.pixels, other.pixels)


def test_only_what_is_asked_for_changes(toys: Path) -> None:
    made = world.World(toys, size=32)
    still, moving = (made.clips(8, 4, seeded(), motion=motion) for motion in ("staying still", "moving left"))
    assert torch.equal(still.place, moving.place)
    assert torch.equal(still.subject, moving.subject)
    bare = ((still.mask + moving.mask) == 0).expand_as(still.pixels)
    assert torch.equal(still.pixels[bare], moving.pixels[bare])
    assert [caption.replace("staying still", "moving left") for caption in still.captions] == moving.captions


def test_names_are_one_or_one_each(toys: Path) -> None:
    made = world.World(toys, size=32, subjects=["fox", "apple"])
    clips = made.clips(
        3, 2, seeded(), subject=["apple", "fox", "apple"], place="sea", motion=["rising", "pacing", "rising"]
    )
    assert clips.subject.tolist() == [1, 0, 1]
    assert {world.PLACES[place] for place in clips.place} == {"sea"}
    assert [ALL_MOTIONS[motion] for motion in clips.motion] == ["rising", "pacing", "rising"]
    with pytest.raises(ValueError, match="hourglass"):
        made.clips(3, 2, seeded(), subject="hourglass")
    with pytest.raises(ValueError, match="2 names"):
        made.clips(3, 2, seeded(), place=["sea", "sky"])


def test_drawn_motions_are_training_ones(toys: Path) -> None:
    motions = world.World(toys, size=32).clips(400, 1, seeded()).motion
    assert set(motions.tolist()) == set(range(len(world.MOTIONS)))


# -- truth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_the_sprite_is_where_the_truth_says(toys: Path, size: int) -> None:
    clips = world.World(toys, size=size).clips(48, 8, seeded(), motion=[m for m in ALL_MOTIONS for _ in range(2)])
    edges = torch.cat(
        (clips.centre - clips.scale[..., None] / 2, 1 - clips.centre - clips.scale[..., None] / 2), dim=-1
    )
    whole = edges.amin(-1) > 1 / size
    assert whole.float().mean() > 0.6
    assert (middle(clips.mask) - clips.centre)[whole].abs().max() < 0.1 / size
    side = (clips.mask.sum((1, 3, 4)) / torch.pi).sqrt() * 2 / size
    assert (side / clips.scale)[whole].sub(1).abs().max() < 0.04


def test_the_sprite_is_turned_clockwise_by_the_angle(toys: Path) -> None:
    """The half disc hangs below its middle; a quarter turn clockwise puts it to the left."""
    clips = world.World(toys, size=64, subjects=["fox"]).clips(16, 8, seeded(), motion="spinning")
    right, down = (middle(clips.mask) - clips.centre).unbind(-1)
    error = torch.atan2(-right, down) - clips.angle
    assert torch.remainder(error + 1, 2 * torch.pi).sub(1).abs().max() < 0.05


@pytest.mark.parametrize("frames", [8, 16])
def test_subjects_are_large_and_mainly_in_the_frame(toys: Path, frames: int) -> None:
    made = world.World(toys, size=32)
    clips = made.clips(240, frames, seeded(), motion=[m for m in ALL_MOTIONS for _ in range(10)])
    shown = clips.mask.sum((1, 3, 4)) / (torch.pi / 4 * (clips.scale * 32) ** 2)
    assert shown.min() > 0.5
    assert shown.mean() > 0.9
    assert 0.4 < clips.scale.mean() < 0.6
    assert clips.scale.min() > 0.15


def test_motions_differ_as_paths(toys: Path) -> None:
    """The nearest of other clips, by path alone, has the same motion, though phase, pace and place all vary."""
    names = [motion for motion in ALL_MOTIONS for _ in range(40)]
    clips = world.World(toys, size=8).clips(len(names), 8, seeded(), motion=names)
    turned = torch.stack((clips.angle.cos(), clips.angle.sin()), dim=-1) / 4
    paths = torch.cat((clips.centre, clips.scale[..., None], turned), dim=-1).flatten(1)
    distances = torch.cdist(paths, paths).fill_diagonal_(torch.inf)
    right = clips.motion[distances.argmin(1)] == clips.motion
    each = right.view(len(ALL_MOTIONS), -1).float().mean(1)
    assert right.float().mean() > 0.95
    assert each.min() > 0.7, ALL_MOTIONS[int(each.argmin())]


def test_without_jitter_a_motion_is_one_path(toys: Path) -> None:
    made = world.World(toys, size=32)
    one, other = (made.clips(len(ALL_MOTIONS), 8, seeded(seed), motion=ALL_MOTIONS, jitter=False) for seed in (0, 1))
    assert torch.equal(one.centre, other.centre)
    assert torch.equal(one.scale, other.scale)
    assert torch.equal(one.angle, other.angle)
    assert not torch.equal(one.pixels, other.pixels)


def test_places_differ_at_a_glance(toys: Path) -> None:
    """Shrunk to 8 x 8 pixels, without the subject, the nearest other picture is of the same place."""
    names = [place for place in world.PLACES for _ in range(20)]
    clips = world.World(toys, size=32).images(len(names), seeded(), place=names)
    small = torch.nn.functional.adaptive_avg_pool2d((clips.pixels * (1 - clips.mask))[:, :, 0], 8).flatten(1)
    distances = torch.cdist(small, small).fill_diagonal_(torch.inf)
    assert (clips.place[distances.argmin(1)] == clips.place).float().mean() > 0.97


# -- words ------------------------------------------------------------------------------------------------------------


def test_captions_are_english(toys: Path) -> None:
    made = world.World(toys, size=8, subjects=list(SUBJECTS))
    said = [
        caption for motion in ALL_MOTIONS for caption in made.clips(60, 1, seeded(len(motion)), motion=motion).captions
    ] + made.images(300, seeded()).captions
    words = {word for caption in said for word in caption.replace(",", " ,").split()}
    assert words <= set(made.vocabulary())
    articles = set(re.findall(r"\b(an?) (\w+)", " ".join(said)))
    expected = {("an", "apple"), ("an", "hourglass"), ("a", "unicorn"), ("an", "animal"), ("a", "fruit")}
    assert expected <= articles
    assert not articles & {(("a", "an")[article == "a"], noun) for article, noun in expected}
    assert not any(re.search(r"[A-Z{}]|  | ,", caption) for caption in said)
    assert (
        len({re.sub(r"\b(apple|hourglass|unicorn|fruit|object|animal|an?)\b", "", caption) for caption in said}) > 300
    )


def test_captions_say_what_is_true(toys: Path) -> None:
    made = world.World(toys, size=8)
    places = tomllib.loads((PRETRAIN / "lists" / "places.toml").read_text())
    clips = made.clips(200, 2, seeded())
    for caption, subject, place, motion in zip(clips.captions, clips.subject, clips.place, clips.motion, strict=True):
        assert ALL_MOTIONS[motion] in caption
        assert places[world.PLACES[place]] in caption
        assert made.subjects[subject] in caption or made.words[subject] in caption
    by_class = sum(not any(name in caption for name in made.subjects) for caption in clips.captions)
    assert 5 < by_class < 50


def test_held_out_subjects_go_by_their_class_word(toys: Path) -> None:
    made = world.World(toys, size=8, subjects=["fox"])
    captions = made.images(20, seeded()).captions
    assert all("an animal" in caption for caption in captions)
    assert "fox" not in made.vocabulary()


# -- lists ------------------------------------------------------------------------------------------------------------


def test_lists() -> None:
    lists = tomllib.loads((PRETRAIN / "lists" / "subjects.toml").read_text())
    rows = sprites.subjects()
    names = {split: {row["name"] for row in rows if row["split"] == split} for split in ("training", "held_out")}
    words = {split: {row["word"] for row in rows if row["split"] == split} for split in names}
    assert len(rows) == len({row["name"] for row in rows}) == len({row["codepoint"] for row in rows})
    assert len(names["training"]) >= 300
    assert len(names["held_out"]) >= 40
    assert words["held_out"] <= words["training"]
    assert not words["training"] & (names["training"] | names["held_out"])
    assert len(lists["narrow"]) == len(set(lists["narrow"])) == 32
    assert set(lists["narrow"]) <= names["training"]
    assert set(lists["examples"]) <= names["held_out"]
    assert len(lists["examples"]) >= 20
    said = {word for name in names["training"] | words["training"] for word in name.split()}
    assert not said & {word for name in names["held_out"] for word in name.split()} - {"skate"}
    assert len(set(ALL_MOTIONS)) == len(world.MOTIONS) + len(world.HELD_OUT_MOTIONS)
    assert min(len(world.MOTIONS), len(world.HELD_OUT_MOTIONS), len(world.PLACES)) >= 10


def test_a_sprite_fills_its_square() -> None:
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).rectangle((10, 30, 49, 39), fill=(200, 100, 0, 128))
    made = sprites.picture(image, side=20)
    assert made.shape == (4, 20, 20)
    rows, columns = np.nonzero(made[3])
    assert (rows.min() + rows.max(), columns.min(), columns.max()) == (19, 0, 19)
    assert made[:, 10, 10].tolist() == pytest.approx([100, 50, 0, 128], abs=1)
    assert (made[:3] <= made[3:]).all()


def test_concepts_are_readable(toys: Path, tmp_path: Path) -> None:
    made = world.World(toys, size=64, subjects=list(SUBJECTS))
    truth = concepts.write_subject(tmp_path / "fox", "fox", made, seeded())
    subject = read_concept(tmp_path / "fox")
    assert (subject.name, subject.word, subject.kind, subject.left_out) == ("fox", "animal", "image", ())
    assert [example.path.name for example in subject.examples] == list(truth)
    assert all(example.mask for example in subject.examples)
    assert len({one["place"] for one in truth.values()}) == len(truth)
    truth = concepts.write_motion(tmp_path / "pacing", "pacing", 8, made, seeded())
    motion = read_concept(tmp_path / "pacing")
    assert (motion.name, motion.kind, motion.left_out) == ("pacing", "clip", ())
    assert [example.frames for example in motion.examples] == [8] * len(truth)
    assert all("pacing" in example.caption for example in motion.examples)
    assert len({one["subject"] for one in truth.values()}) == len(truth)
