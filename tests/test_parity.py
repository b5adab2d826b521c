"""The official UNet with its adapters and ours compute the same, and files go there and back unchanged.

`fixtures/official_unet` holds the official code's names, shapes, inputs and outputs for a narrow model. Weights
follow a rule, so that none are stored.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.unet3d import UNet3D
from dreamvideo.official import (
    Layout,
    describe,
    read_adapters,
    read_unet,
    read_word,
    write_adapters,
    write_unet,
    write_word,
)

FIXTURE = Path(__file__).parent / "fixtures" / "official_unet"
NARROW = Layout(1, (True, False))


def rule(key: str, shape: list[int]) -> Tensor:
    """The weight of that official name."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape).astype(np.float32)
    if key.endswith("bias"):
        draw = np.float32(0.02) * draw
    elif len(shape) == 1:
        draw = 1 + np.float32(0.1) * draw
    else:
        draw = (draw * 0.7 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return torch.from_numpy(draw)


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    torch.set_num_threads(1)
    shapes = json.loads((FIXTURE / "keys.json").read_text(encoding="utf-8"))["keys"]
    return {key: rule(key, shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(official: Mapping[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As the official code leaves them: the whole model in one file, adapters in a file each."""
    folder = tmp_path_factory.mktemp("official")
    moving = motion(official)
    learned = {key: nn.Parameter(tensor) for key, tensor in official.items() if "_adapter." in key}
    parts = {
        "unet": official,
        "identity": {key: tensor for key, tensor in learned.items() if key not in moving},
        "motion": {key: tensor for key, tensor in learned.items() if key in moving},
    }
    for name, tensors in parts.items():
        torch.save({"state_dict": tensors, "step": 600}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in parts}


def motion(keys: Mapping[str, Tensor]) -> set[str]:
    """Only motion adapters have condition layers."""
    blocks = {key.partition(".transformer_blocks.")[0] for key in keys if "condition_linear" in key}
    return {key for key in keys if "_adapter." in key and key.partition(".transformer_blocks.")[0] in blocks}


@pytest.fixture(scope="module")
def base(files: Mapping[str, Path]) -> UNet3D:
    tiny = UNet3D.tiny(0)
    return UNet3D(tiny.origin, parts=replace(tiny.parts, denoiser=read_unet(files["unet"])), defaults=tiny.defaults)


def adapter(path: Path, placement: str) -> AdapterSet:
    concept = read_adapters(path, name="x", created_by="test", layout=NARROW, placement=placement)
    (only,) = concept.sets.values()
    return only


CASES = {
    "base": ((), "parallel", False, 1.0),
    "identity": (("identity",), "parallel", False, 1.0),
    "motion": (("motion",), "parallel", True, 1.0),
    "both": (("identity", "motion"), "parallel", True, 1.0),
    "both_strength_0.5": (("identity", "motion"), "parallel", True, 0.5),
    "both_serial": (("identity", "motion"), "serial", True, 1.0),
    "identity_one_frame": (("identity",), "parallel", False, 1.0),
    "motion_no_appearance": (("motion",), "parallel", False, 1.0),
}


@pytest.fixture(scope="module")
def cases() -> dict[str, Tensor]:
    return load_file(FIXTURE / "cases.safetensors")


def test_no_case_is_left_out(cases: Mapping[str, Tensor]) -> None:
    assert {key for key in cases if key.startswith("out.")} == {f"out.{name}" for name in CASES}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_outputs_are_the_official_ones(
    name: str, base: UNet3D, files: Mapping[str, Path], cases: Mapping[str, Tensor]
) -> None:
    used, placement, with_appearance, strength = CASES[name]
    sample = cases["sample"][:, :, :1] if name == "identity_one_frame" else cases["sample"]
    sets = [adapter(files[part], placement) for part in used]
    appearance = cases["appearance"] if with_appearance else None
    with base.attached(*sets), base.given(appearance=appearance, strength=strength):
        out = base.predict(sample, cases["timestep"], cases["text"])
    expected = cases[f"out.{name}"]
    assert out.shape == expected.shape
    error = (out - expected).abs().max().item()
    assert error < 1e-4
    # What is attached matters far more than the tolerance.
    if sets:
        with torch.no_grad():
            alone = base.predict(sample, cases["timestep"], cases["text"])
        assert (alone - expected).abs().max() > 1e-2


def stored(path: Path) -> dict[str, Tensor]:
    data = torch.load(path, weights_only=True)
    assert data.keys() == {"state_dict", "step"} and isinstance(data["step"], int)
    return data["state_dict"]


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].shape == tensor.shape and ours[key].dtype == tensor.dtype, key
        assert ours[key].detach().numpy().tobytes() == tensor.detach().numpy().tobytes(), key


def test_unet_goes_back_unchanged(
    base: UNet3D, files: Mapping[str, Path], official: Mapping[str, Tensor], tmp_path: Path
) -> None:
    # Written while ported, with an adapter attached: neither leaves a trace.
    with base.attached(adapter(files["motion"], "parallel")):
        write_unet(tmp_path / "back.pth", base.parts.denoiser, step=3)
    same(stored(tmp_path / "back.pth"), {key: v for key, v in official.items() if "_adapter." not in key})


@pytest.mark.parametrize("label", ["identity", "motion"])
def test_adapters_go_back_unchanged(label: str, files: Mapping[str, Path], tmp_path: Path) -> None:
    concept = read_adapters(files[label], name="x", created_by="test", layout=NARROW)
    assert list(concept.sets) == [label] and concept.meta.steps == {label: 600}
    write_adapters(tmp_path / "back.pth", concept, layout=NARROW)
    back = stored(tmp_path / "back.pth")
    same(back, stored(files[label]))
    assert all(isinstance(tensor, nn.Parameter) for tensor in back.values())
    assert torch.load(tmp_path / "back.pth", weights_only=True)["step"] == 600


def test_both_adapters_of_one_file(official: Mapping[str, Tensor], tmp_path: Path) -> None:
    tensors = {key: tensor for key, tensor in official.items() if "_adapter." in key}
    torch.save(tensors, tmp_path / "flat.pth")  # flat, as loaders also take it
    concept = read_adapters(tmp_path / "flat.pth", name="x", created_by="test", layout=NARROW)
    assert concept.sets.keys() == {"identity", "motion"} and concept.meta.steps == {}
    write_adapters(tmp_path / "back.pth", concept, layout=NARROW)
    same(stored(tmp_path / "back.pth"), tensors)


def test_what_we_learned_goes_there_and_back(files: Mapping[str, Path], tmp_path: Path) -> None:
    base = UNet3D.tiny(0)
    sets = {
        "identity": AdapterSet(Bottleneck(), base.sites("space", ("attn2",)), seed=3),
        "motion": AdapterSet(Bottleneck(condition=24), base.sites("time", ("attn1", "attn2", "ff")), seed=3),
    }
    like = read_adapters(files["identity"], name="x", created_by="test", layout=NARROW)
    write_adapters(tmp_path / "both.pth", replace(like, sets=sets), layout=NARROW)
    back = read_adapters(tmp_path / "both.pth", name="x", created_by="test", layout=NARROW).sets
    assert describe(tmp_path / "both.pth")["format"] == "official identity and motion adapter"
    assert back.keys() == sets.keys()
    for label, adapters in sets.items():
        assert back[label].kind == adapters.kind and set(back[label].sites) == set(adapters.sites)
        same(back[label].state_dict(), adapters.state_dict())
    base.attach(*back.values())


@pytest.mark.parametrize("count", [1, 3])
def test_word_goes_back_unchanged(count: int, tmp_path: Path) -> None:
    vectors = torch.randn(count, 1024, generator=torch.Generator().manual_seed(0))
    data = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": vectors})}
    torch.save(data, tmp_path / "there.pth")
    write_word(tmp_path / "back.pth", read_word(tmp_path / "there.pth", name="dog", created_by="test"))
    with torch.serialization.safe_globals([nn.ParameterDict]):
        back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == data.keys() and isinstance(back["string_to_param"], nn.ParameterDict)
    assert back["string_to_token"]["*"].equal(data["string_to_token"]["*"])
    same(dict(back["string_to_param"].items()), dict(data["string_to_param"].items()))


def test_files_are_recognised(files: Mapping[str, Path], official: Mapping[str, Tensor]) -> None:
    unet = describe(files["unet"])
    assert unet["format"] == "official UNet" and unet["widths"] == [64, 128] and unet["layers"] == 1
    assert unet["tensors"] == len(official) and unet["step"] == 600
    identity, moves = describe(files["identity"]), describe(files["motion"])
    assert identity["format"] == "official identity adapter" and identity["condition"] == {"identity": None}
    assert moves["format"] == "official motion adapter" and moves["condition"] == {"motion": 1024}
    assert moves["widths"] == [64, 128, 512] and moves["hidden"] == {"motion": "half"}
    assert unet["adapters"] == identity["tensors"] + moves["tensors"]
