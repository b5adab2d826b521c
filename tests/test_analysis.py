"""What is read off learned concepts: which layers changed, and which checkpoint at which weight is best."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dreamvideo import api, media
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.file import ConceptFile, Meta
from dreamvideo.adapters.graft import AdapterSet, Kind
from dreamvideo.adapters.kv import KeyValue
from dreamvideo.adapters.lora import LoRA
from dreamvideo.adapters.weight import Weight
from dreamvideo.adapters.words import learned_word
from dreamvideo.analysis import attention, grid, weights
from dreamvideo.bases.base import VideoBase
from dreamvideo.errors import BadInput
from dreamvideo.metrics.metric import Metric, Sample, Score
from dreamvideo.sample import SampleConfig


def disturbed(adapters: AdapterSet) -> AdapterSet:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapters


def concept(base: VideoBase, **sets: AdapterSet) -> ConceptFile:
    meta = Meta(
        name="dog", role="subject", word="animal", family=base.family, base=base.name, fingerprint=base.fingerprint,
        method="lora-subject", created_by="test",
    )  # fmt: skip
    return ConceptFile(meta, sets)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LoRA(rank=2, alpha=3.0), KeyValue(), Delta()], ids=lambda kind: kind.label)
def test_a_change_is_what_the_adapter_does_to_the_layer(base: VideoBase, kind: Kind) -> None:
    (site, *_) = (
        base.linears("space", ["attn2.to_k"]) if "out" in kind.ports else base.weights("space", ["*to_k.weight"])
    )
    adapters, layer = disturbed(AdapterSet(kind, [site])), base.locate(site)
    ((where, change),) = adapters.changes()
    x = torch.randn(2, 3, layer.in_features)
    with torch.no_grad(), base.attached(adapters):
        expected = torch.nn.functional.linear(x, layer.get_parameter(where.parameter) + change, layer.bias)
        torch.testing.assert_close(layer(x), expected)
    assert where == site


def test_a_convolutions_change_likewise(base: VideoBase) -> None:
    site = next(site for site in base.weights("space", ["*conv1.weight"]) if len(site.shape) == 4)
    low = LoRA(rank=2).build(site, torch.Generator())
    torch.nn.init.normal_(low.up)
    change, x = LoRA(rank=2).change(low), torch.randn(1, site.shape[1], 5, 5)
    expected = torch.nn.functional.conv2d(x, change)
    actual = low(x, lambda x, weight, bias: torch.nn.functional.conv2d(x, weight, bias))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_rates_are_the_formula_and_categories_the_papers(base_over_time: VideoBase) -> None:
    base = base_over_time
    for axis, attentions in (("space", {"self-attention", "cross-attention"}), ("time", {"self-attention"})):
        adapters = AdapterSet(Delta(), base.weights(axis))
        own = {site: base.locate(site).get_parameter(site.parameter) for site in adapters.sites}
        with torch.no_grad():
            for name, parameter in adapters.named_parameters():
                site = next(site for site in own if name == f"{site.key}.delta")
                parameter.copy_(-own[site] * (0.25 if "attn" in site.path.rpartition("blocks")[2] else 0.5))
        found = weights.changes(base, concept(base, subject=adapters))
        zero = sum(not tensor.any() for tensor in own.values())
        assert len(found) == len(own) - zero
        assert {change.axis for change in found} == {axis}
        means = weights.means(found)
        assert means.keys() - {"feed-forward", "other"} == attentions
        assert sum(mean.tensors for mean in means.values()) == len(found)
        for category, mean in means.items():
            assert mean.rate == pytest.approx(0.25 if category in attentions else 0.5), (axis, category)


def test_changes_of_one_tensor_add_up(unet3d: VideoBase) -> None:
    (site, *_) = unet3d.linears("space", ["attn2.to_k"])
    one = disturbed(AdapterSet(KeyValue(), [site]))
    (alone,) = weights.changes(unet3d, concept(unet3d, a=one))
    (twice,) = weights.changes(unet3d, concept(unet3d, a=one, b=one))
    assert twice.rate == pytest.approx(2 * alone.rate)
    assert alone.parameter == f"{site.path}.weight"
    assert alone.category == "cross-attention"


def test_adapters_beside_the_layers_change_no_weight(unet3d: VideoBase, tmp_path: Path) -> None:
    beside = AdapterSet(Bottleneck(), unet3d.sites("space", ("attn2",)))
    with pytest.raises(BadInput, match=r"dog: lora-subject changes no weight of the base \(bottleneck\)"):
        weights.write(tmp_path, unet3d, [concept(unet3d, identity=beside)])
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_changes_has_every_tensor(unet3d: VideoBase, tmp_path: Path) -> None:
    low = disturbed(AdapterSet(LoRA(rank=2), unet3d.linears("space", ["*"])))
    files, shown = weights.write(tmp_path, unet3d, [concept(unet3d, subject=low)])
    with files[0].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(low.sites)
    (means,) = shown.values()
    assert "other" not in means  # nothing of it was tuned
    for category, mean in means.items():
        rates = [float(line["rate"]) for line in lines if line["category"] == category]
        assert (mean.rate, mean.tensors) == (pytest.approx(np.mean(rates)), len(rates))
    assert (media.read_image(files[1]).pixels == (0, 114, 178)).all(axis=-1).any()


# -- attention --------------------------------------------------------------------------------------------------------


def test_maps_are_the_probabilities_of_the_words_tokens(base: VideoBase) -> None:
    config = SampleConfig(frames=3, steps=2, guidance=5.0).filled(base.defaults)
    _, *shape = base.latent_shape(config.frames, config.height, config.width)
    length = base.parts.tokenizer.model_max_length
    tokens = attention.places(base, "a dog in the snow", "dog", [])
    one, rest = (
        attention.Reader(places, length=length, shape=tuple(shape))
        for places in (tokens, [place for place in range(length) if place not in tokens])
    )
    # The layers as they are, without the code under test: what to_q and to_k said, layer by layer.
    said: list[tuple[int, torch.Tensor]] = []
    blocks = [block for path, block in base._places.blocks.items() if base.axis(path) == "space"]
    hooks = [
        layer.register_forward_hook(lambda layer, given, result, heads=block.attn2.heads: said.append((heads, result)))
        for block in blocks
        for layer in (block.attn2.to_q, block.attn2.to_k)
    ]
    video = api.generate(base, "a dog in the snow", config=config, controller=one)
    for hook in hooks:
        hook.remove()
    expected = torch.zeros(config.steps, *shape)
    for number, pair in enumerate(zip(said[::2], said[1::2], strict=True)):
        q, k = (x[-config.frames :].unflatten(-1, (heads, -1)).transpose(1, 2) for heads, x in pair)
        shares = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)[..., tokens].sum(dim=-1).mean(dim=1)
        half = round((shape[1] * shape[2] / shares.shape[1]) ** 0.5)
        maps = shares.reshape(-1, 1, shape[1] // half, shape[2] // half)
        full = torch.nn.functional.interpolate(maps, size=shape[1:], mode="bilinear")[:, 0]
        expected[number // len(blocks)] += full / len(blocks)
    np.testing.assert_allclose(one.maps, expected, atol=1e-5)
    api.generate(base, "a dog in the snow", config=config, controller=rest)
    np.testing.assert_allclose(one.maps + rest.maps, 1, atol=1e-5)
    plain = api.generate(base, "a dog in the snow", config=config)
    assert np.abs(video.frames.astype(int) - plain.frames).max() <= 1  # by rounding alone


def test_words_are_found_wherever_they_stand(unet3d: VideoBase) -> None:
    (site,) = unet3d.sites("text", ("word",))
    word = learned_word("rex", torch.zeros(2, site.width), site)
    rex = concept(unet3d, word=word)
    first, second, *more = attention.places(unet3d, "a <rex> and a <rex>", "<rex>", [rex])
    assert second == first + 1
    assert len(more) == 2
    starts = attention.places(unet3d, "a <rex> and a <rex>", "a", [rex])
    assert first == starts[0] + 1 == 2
    with pytest.raises(BadInput, match="--word cat: not in the prompt"):
        attention.places(unet3d, "a <rex>", "cat", [rex])


# -- grids ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Brightness(Metric):
    """Stands in for a metric whose encoder is heavy."""

    name: str
    needs: ClassVar[str] = "nothing"

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {"frames": "all"}

    def measure(self, sample: Sample) -> float | None:
        return float(sample.frames.mean()) / 255


def cell(unet3d: VideoBase, *rows: Mapping[str, float]) -> grid.Cell:
    scores = tuple({name: Score(name, value, True, {}) for name, value in row.items()} for row in rows)
    frames = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    return grid.Cell(grid.Version(concept(unet3d), None, Weight()), None, (), frames, scores)


def test_the_rule_by_hand(unet3d: VideoBase) -> None:
    def ranked(*rows: Sequence[float]) -> tuple[list[float], int]:
        return grid.ranked([cell(unet3d, {"CLIP-T": text, "DINO-I": look}) for text, look in rows])

    scores, best = ranked((0.1, 0.9), (0.3, 0.1), (0.2, 0.7))
    assert scores == [0.0, 0.0, pytest.approx(2 / (1 / 0.5 + 1 / 0.75))]
    assert best == 2
    assert ranked((0.1, 0.9), (0.3, 0.1))[1] == 0  # of equals the first
    assert ranked((0.2, 0.5), (0.2, 0.6))[1] == 1  # what is the same everywhere decides nothing
    assert grid.ranked([cell(unet3d, {"Motion fidelity": value}) for value in (0.1, 0.4, 0.3)])[1] == 1


def test_criteria_are_what_every_cell_has(unet3d: VideoBase) -> None:
    one = {"CLIP-T": 0.1, "CLIP-I": 0.2, "DINO-I": 0.3, "Leak": 0.4}
    other = {name: value for name, value in one.items() if name != "DINO-I"}
    assert grid.criteria([cell(unet3d, one)]) == ["CLIP-T", "DINO-I"]
    assert grid.criteria([cell(unet3d, one), cell(unet3d, one, other)]) == ["CLIP-T", "CLIP-I"]
    assert cell(unet3d, one, {**one, "Leak": 0.2}).means["Leak"] == pytest.approx(0.3)
    with pytest.raises(BadInput, match="--references"):
        grid.criteria([cell(unet3d, {"Leak": 0.1})])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, dog: Path, turn: Path) -> tuple[VideoBase, Path]:
    """A subject of two stages and a motion, with a checkpoint of every step."""
    base, folder = api.load_base("tiny", device="cpu"), tmp_path_factory.mktemp("runs")
    settings = [{"train": {"steps": 2, "batch": 1, "save_every": 1}}]
    api.learn(base, dog, method="dreamvideo-subject", word="dog", out=folder / "dog", settings=settings)
    lora = {"method": "lora-motion", "caption": "a car turning", "settings": settings}
    api.learn(base, turn, out=folder / "turn", **lora)
    return base, folder


def test_versions_are_the_last_stages_checkpoints(runs: tuple[VideoBase, Path]) -> None:
    _, folder = runs
    found = grid.versions(folder / "dog", weights=["0.5", "1"])
    assert [(v.step, str(v.weight)) for v in found] == [(1, "0.5"), (1, "1"), (2, "0.5"), (2, "1")]
    assert [dict(v.concept.meta.steps) for v in found[::2]] == [{"word": 2, "identity": 1}, {"word": 2, "identity": 2}]
    assert [v.step for v in grid.versions(folder / "turn", steps=[2])] == [2]
    assert [v.step for v in grid.versions(folder / "dog" / "dog.safetensors")] == [None]
    with pytest.raises(BadInput, match=r"no checkpoint of step 7; there are 1, 2; .*train\.save_every"):
        grid.versions(folder / "dog", steps=[7])
    with pytest.raises(BadInput, match="there are none"):
        grid.versions(folder / "dog" / "dog.safetensors", steps=[7])
    with pytest.raises(BadInput, match="no checkpoints in it"):
        grid.versions(folder)


def test_a_grid_has_every_combination(runs: tuple[VideoBase, Path], dog: Path, turn: Path, tmp_path: Path) -> None:
    base, folder = runs
    asked = grid.Asked(
        prompt="a <dog> turning", seeds=(3, 4), config=SampleConfig(frames=2, steps=1), references=dog,
        reference_clip=turn,
    )  # fmt: skip
    subjects = grid.versions(folder / "dog", weights=["0", "1"])
    motions = grid.versions(folder / "turn", steps=[2])
    measures = [Brightness("CLIP-T"), Brightness("DINO-I")]
    told: list[tuple[int, int]] = []
    cells = grid.make(
        base, asked, subjects, motions, measures=measures, folder=tmp_path / "videos",
        on_video=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(number, 8) for number in range(1, 9)]
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 8
    made = json.loads((tmp_path / "videos" / "004-seed-4.mp4.json").read_text())
    assert [(Path(c["path"]).name, c["weight"]) for c in made["concepts"]] == [
        ("identity-000002.safetensors", "1"),
        ("motion-000002.safetensors", "1"),
    ]
    files, best = grid.write(tmp_path, asked, cells)
    # The motion has one step here: there is nothing to draw against it.
    assert [file.name for file in files] == ["grid.csv", "grid.json", "sheet.png", "subject-steps.png"]
    with (tmp_path / "grid.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["subject_step"], line["subject_weight"], line["motion_step"]) for line in lines] == [
        ("1", "0", "2"), ("1", "1", "2"), ("2", "0", "2"), ("2", "1", "2"),
    ]  # fmt: skip
    assert [int(line["best"]) for line in lines] == [int(number == best) for number in range(4)]
    means = [float(line["CLIP-T"]) for line in lines]
    assert best == int(np.argmax(means))
    report = json.loads((tmp_path / "grid.json").read_text())
    assert report["metrics"]["CLIP-T"] == {"frames": "all"}
    assert [np.mean([seed["CLIP-T"] for seed in one["scores"]]) for one in report["cells"]] == pytest.approx(means)
    pixels = media.read_image(tmp_path / "sheet.png").pixels
    rows = np.flatnonzero((pixels == (213, 94, 0)).all(axis=-1).sum(axis=1) > 100)
    # The frame around the best: of four rows it stands in that one.
    assert int(rows.mean() / len(pixels) * 4.6 - 0.6) == best


def test_a_grid_of_one_concept_has_its_steps_down_and_its_weights_across(
    runs: tuple[VideoBase, Path], turn: Path, tmp_path: Path
) -> None:
    base, folder = runs
    asked = grid.Asked(prompt="a dog turning", config=SampleConfig(frames=2, steps=1), reference_clip=turn)
    motions = grid.versions(folder / "turn", weights=["0.5", "1", "1.5"])
    cells = grid.make(base, asked, [], motions, measures=[Brightness("CLIP-T")], folder=tmp_path / "videos")
    files, _ = grid.write(tmp_path, asked, cells)
    assert [file.name for file in files] == ["grid.csv", "grid.json", "sheet.png", "motion-steps.png"]
    height, width, _ = media.read_image(tmp_path / "sheet.png").pixels.shape
    assert width > height  # three weights across, two steps down
    with pytest.raises(BadInput, match="--subject, a --motion"):
        grid.make(base, asked, [], [], measures=[], folder=tmp_path)
