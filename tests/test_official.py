"""Official files at full size (without storage), what is refused, and words in other tools' files."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.file import load, save
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.unet3d import UNet3D
from dreamvideo.errors import BadFile, BadInput, Unsupported
from dreamvideo.official import (
    Layout,
    describe,
    join,
    read_adapters,
    read_tensors,
    read_unet,
    read_word,
    to_diffusers,
    to_official,
    unet_config,
    write_adapters,
    write_textual_inversion,
    write_unet,
    write_word,
)
from dreamvideo.official.checkpoint import read_data

torch.set_num_threads(1)

ALL = ("attn1", "attn2", "ff")
ADAPTER = "input_blocks.1.1.transformer_blocks.0.cross_attn_adapter"
TEMPORAL = "input_blocks.1.2.transformer_blocks.0"


@pytest.fixture(scope="module")
def full() -> UNet3D:
    """ModelScopeT2V without storage. These arguments are diffusers' own defaults, said by nobody here."""
    tiny = UNet3D.tiny(0)
    with torch.device("meta"):
        denoiser = UNet3DConditionModel()
    return UNet3D(tiny.origin, parts=replace(tiny.parts, denoiser=denoiser), defaults=tiny.defaults)


def official_state() -> dict[str, Tensor]:
    """The full denoiser's tensors under official names, without storage."""
    with torch.device("meta"):
        state = UNet3DConditionModel().state_dict()
    tensors = {}
    for name, tensor in state.items():
        in_time = "temp_attentions" in name or name.startswith("transformer_in")
        conv = in_time and name.endswith(("proj_in.weight", "proj_out.weight"))
        tensors[str(to_official(name))] = tensor.unsqueeze(-1) if conv else tensor
    return tensors


def size(base: UNet3D, kind: Bottleneck, axis: str, ports: tuple[str, ...]) -> int:
    with torch.device("meta"):
        return AdapterSet(kind, base.sites(axis, ports)).count()


def test_parameter_counts_are_the_papers(full: UNet3D) -> None:
    assert sum(parameter.numel() for parameter in full.parts.denoiser.parameters()) == 1_411_233_860
    assert size(full, Bottleneck(), "space", ("attn2",)) == 12_409_120
    assert size(full, Bottleneck(condition=1024), "time", ALL) == 77_966_496
    assert size(full, Bottleneck(), "time", ALL) == 38_016_096


def test_narrow_parameter_counts(full: UNet3D) -> None:
    identity = size(full, Bottleneck(hidden=32), "space", ("attn2",))
    motion = size(full, Bottleneck(hidden=32), "time", ALL)
    assert (identity, motion, identity + motion) == (811_712, 2_535_072, 3_346_784)
    assert size(full, Bottleneck(hidden=32, condition=1024), "time", ALL) == 42_485_472


def test_names_at_full_size_are_a_bijection(full: UNet3D) -> None:
    with torch.device("meta"):
        names = list(UNet3DConditionModel().state_dict())
    official = [to_official(name) for name in names]
    assert None not in official and len(set(official)) == len(names) == 1480
    assert [to_diffusers(str(key)) for key in official] == names


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("time_embed.2.bias", "time_embedding.linear_2.bias"),
        ("input_blocks.0.1.proj_in.weight", "transformer_in.proj_in.weight"),
        ("input_blocks.5.0.emb_layers.1.weight", "down_blocks.1.resnets.1.time_emb_proj.weight"),
        ("input_blocks.9.op.bias", "down_blocks.2.downsamplers.0.conv.bias"),
        ("input_blocks.11.0.temopral_conv.conv4.3.weight", "down_blocks.3.temp_convs.1.conv4.3.weight"),
        ("middle_block.2.norm.weight", "mid_block.temp_attentions.0.norm.weight"),
        ("middle_block.3.out_layers.3.weight", "mid_block.resnets.1.conv2.weight"),
        ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
        ("output_blocks.5.3.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        ("output_blocks.8.0.skip_connection.weight", "up_blocks.2.resnets.2.conv_shortcut.weight"),
        ("output_blocks.11.1.proj_out.weight", "up_blocks.3.attentions.2.proj_out.weight"),
        ("out.2.weight", "conv_out.weight"),
    ],
)
def test_names_at_full_size(theirs: str, ours: str) -> None:
    assert to_diffusers(theirs) == ours and to_official(ours) == theirs


def test_a_name_outside_the_layout_has_no_other() -> None:
    assert to_diffusers("input_blocks.10.1.proj_in.weight") is None  # no transformer at 1/8 scale
    assert to_diffusers("input_blocks.3.op.weight", Layout(layers=1, attention=(True, False))) is None
    assert to_official("cond_proj.weight") is None


def test_the_configuration_is_seen_in_the_shapes() -> None:
    config = unet_config(official_state())
    with torch.device("meta"):
        default = UNet3DConditionModel().config
    assert config.pop("sample_size") == 32
    assert {key: default[key] for key in config} == config


def linear(name: str, fan_in: int, fan_out: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(fan_in + fan_out)
    weight = torch.randn(fan_out, fan_in, generator=draw)
    return {f"{name}.weight": weight, f"{name}.bias": torch.randn(fan_out, generator=draw)}


def identity(hidden: int = 8) -> dict[str, Tensor]:
    return linear(f"{ADAPTER}.down_linear", 16, hidden) | linear(f"{ADAPTER}.up_linear", hidden, 16)


def written(tmp_path: Path, data: Any) -> Path:
    torch.save(data, tmp_path / "file.pth")
    return tmp_path / "file.pth"


@pytest.mark.parametrize(("width", "said"), [(8, None), (4, 4)])
def test_the_bottleneck_is_seen_in_the_shapes(width: int, said: int | None, tmp_path: Path) -> None:
    concept = read_adapters(written(tmp_path, identity(width)), name="dog", created_by="test", placement="serial")
    assert concept.sets["identity"].kind == Bottleneck(hidden=said, placement="serial")
    (site,) = concept.sets["identity"].sites
    path = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert (site.path, site.port, site.axis, site.width) == (path, "attn2", "space", 16)


def test_what_is_said_of_a_converted_motion(tmp_path: Path) -> None:
    tensors = {}
    for part in ("attn_adapter", "ff_adapter"):
        place = f"{TEMPORAL}.{part}"
        tensors |= linear(f"{place}.down_linear", 16, 8) | linear(f"{place}.up_linear", 8, 16)
        tensors |= linear(f"{place}.condition_linear", 24, 16)
    path = written(tmp_path, {"state_dict": tensors, "step": 7})
    concept = read_adapters(path, name="spin", created_by="test", appearance=(1.0, 1.0), caption="it spins")
    motion, meta = concept.sets["motion"], concept.meta
    assert motion.kind == Bottleneck(condition=24)
    assert {(site.port, site.axis) for site in motion.sites} == {("attn1", "time"), ("ff", "time")}
    assert (meta.role, meta.method, meta.family, meta.fingerprint) == ("motion", "dreamvideo-motion", "unet3d", ())
    assert meta.sampling.appearance == (1.0, 1.0) and meta.sampling.noise_offset == 0.1
    assert meta.steps == {"motion": 7} and meta.caption == "it spins"
    # It is a concept like any other.
    save(tmp_path / "spin.safetensors", concept)
    again = load(tmp_path / "spin.safetensors")
    assert again.meta == meta and again.sets["motion"].kind == motion.kind
    seen = describe(tmp_path / "spin.safetensors")
    assert seen["format"] == "dreamvideo concept" and seen["parameters"] == motion.count() and seen["widths"] == [16]


def test_a_form_that_the_official_code_lacks_is_not_written(tmp_path: Path) -> None:
    like = read_adapters(written(tmp_path, identity()), name="dog", created_by="test")
    sites = UNet3D.tiny(0).sites("space", ("attn2",))
    for sets in ({"identity": AdapterSet(Bottleneck(form="linear"), sites)}, {}):
        with pytest.raises(Unsupported):
            write_adapters(tmp_path / "out.pth", replace(like, sets=sets))
    assert not (tmp_path / "out.pth").exists()


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    done, path = tmp_path / "done", tmp_path / "harm.pth"
    torch.save({**identity(), "x": Harm(done)}, path)
    for read in (read_tensors, read_unet, read_data, describe):
        with pytest.raises(BadFile, match=rf"harm\.pth: holds code \({os.system.__module__}\.system\)"):
            read(path)
    # Bare pickles are not even looked into.
    torch.save({**identity(), "x": Harm(done)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(BadFile, match=r"harm\.pth: not a checkpoint"):
        read_tensors(path)
    assert not done.exists()


def test_only_the_one_container_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"torch\.nn\.modules\.container\.ParameterList"):
        read_tensors(written(tmp_path, {"a": nn.ParameterList([torch.ones(1)])}))
    # The allowance ends with the reading.
    path = written(tmp_path, {"string_to_param": nn.ParameterDict({"*": torch.ones(1, 2)})})
    read_word(path, name="dog", created_by="test")
    with pytest.raises(Exception, match="ParameterDict"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_parts_of_files_are_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    if ending == "pth":
        torch.save(identity(), path)
    else:
        save_file(identity(), path)
    complete = path.read_bytes()
    for kept in (0, 1, 7, 100, len(complete) // 2, len(complete) - 1):
        path.write_bytes(complete[:kept])
        with pytest.raises(BadFile, match=rf"x\.{ending}: not a"):
            describe(path)
    path.unlink()
    with pytest.raises(BadFile, match="no such file"):
        describe(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_spoiled_pickles_raise_nothing_else(tmp_path: Path) -> None:
    torch.save({**star(torch.ones(1, 2)), "step": 3}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = entries["x/data.pkl"]
    cut = [pickled[:length] for length in range(0, len(pickled), 5)]
    flipped = [
        pickled[:i] + bytes([pickled[i] ^ flip]) + pickled[i + 1 :] for i in range(len(pickled)) for flip in (1, 9)
    ]
    refused = 0
    for spoiled in cut + flipped:
        with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
            for name, content in {**entries, "x/data.pkl": spoiled}.items():
                archive.writestr(name, content)
        try:
            describe(tmp_path / "y.pth")
        except BadFile as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / "y.pth")) and "\n" not in str(error)
    assert refused > len(pickled) // 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({**identity(), "proj.weight": torch.ones(2)}, "tensor proj.weight is foreign; expected adapters"),
        ({**identity(), f"{ADAPTER}.extra": torch.ones(2)}, f"tensor {ADAPTER}.extra is foreign"),
        ({f"{ADAPTER}.up_linear.weight": torch.ones(16, 8)}, "attn2.down.bias: missing"),
        ({f"{ADAPTER}.down_linear.bias": torch.ones(8)}, "no up_linear.weight"),
        ({f"{ADAPTER}.up_linear.weight": torch.ones(16)}, "has 1 axes"),
        ({"a": 3}, "entry 'a' is int"),
        ({}, "holds dict"),
        (torch.ones(3), "holds Tensor"),
    ],
)
def test_other_contents_are_not_adapters(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile) as caught:
        read_adapters(written(tmp_path, data), name="dog", created_by="test")
    assert str(caught.value).startswith(f"{tmp_path / 'file.pth'}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_layout_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, identity() | {k.replace("blocks.1.1", "blocks.3.1"): v for k, v in identity().items()})
    with pytest.raises(BadFile, match=r"input_blocks\.3\.1.* with 2 residual blocks a level"):
        read_adapters(path, name="dog", created_by="test")
    assert len(read_adapters(path, name="dog", created_by="test", layout=Layout(layers=1)).sets["identity"].sites) == 2


def test_a_denoiser_must_be_exact(tmp_path: Path) -> None:
    model = UNet3D.tiny(0).parts.denoiser
    wide = UNet3DConditionModel(**{**model.config, "norm_num_groups": 32, "attention_head_dim": 8})
    write_unet(tmp_path / "whole.pth", wide)
    complete, _ = read_tensors(tmp_path / "whole.pth")
    back = read_unet(tmp_path / "whole.pth").state_dict()
    assert all(back[name].equal(tensor) for name, tensor in wide.state_dict().items())
    write_unet(tmp_path / "half.pth", wide.half())
    assert read_unet(tmp_path / "half.pth").dtype == torch.float16
    spoiled = {
        "tensor input_blocks.1.7.weight is foreign": complete | {"input_blocks.1.7.weight": torch.ones(1)},
        "tensor input_blocks.1.1.x.weight is foreign": complete | {"input_blocks.1.1.x.weight": torch.ones(1)},
        "1 tensors are missing, the first out.0.bias": {k: v for k, v in complete.items() if k != "out.0.bias"},
        "tensor out.0.bias has shape [3]": complete | {"out.0.bias": torch.ones(3)},
        "no tensor out.2.weight": {k: v for k, v in complete.items() if k != "out.2.weight"},
        "no tensor input_blocks.0.0.weight": identity(),
    }
    for said, tensors in spoiled.items():
        with pytest.raises(BadFile) as caught:
            read_unet(written(tmp_path, tensors))
        assert str(caught.value).startswith(f"{tmp_path / 'file.pth'}: ") and said in str(caught.value)


def test_other_files_are_described(tmp_path: Path) -> None:
    assert describe(written(tmp_path, {"a": torch.ones(2), "b": torch.ones(3, 4)}))["format"] == "unknown tensors"
    assert describe(written(tmp_path, torch.ones(1, 4, 2, 2, 2)))["parameters"] == 32


def star(vectors: Tensor) -> dict[str, Any]:
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": vectors})}


def test_forms_of_a_word_are_told_apart(tmp_path: Path) -> None:
    vectors = torch.arange(8.0).reshape(2, 4)
    forms: dict[str, Any] = {
        "official word": star(vectors),
        "textual inversion (AUTOMATIC1111)": {**star(vectors), "name": "dog", "step": 5},
        "textual inversion (diffusers)": {"<dog>": vectors},
    }
    for form, data in forms.items():
        path = written(tmp_path, data)
        seen = describe(path)
        assert (seen["format"], seen["vectors"], seen["widths"], seen["parameters"]) == (form, 2, [4], 8)
        word = read_word(path, name="dog" if form == "official word" else None, created_by="test").sets["word"]
        (site,) = word.sites
        assert word.kind.name == "dog" and word.kind.vectors == 2  # type: ignore[attr-defined]
        assert (site.path, site.port, site.axis, site.width) == ("tokens", "word", "text", 4)
        assert word.state_dict()["tokens.word.vectors"].equal(vectors)


def test_a_single_vector_may_be_bare(tmp_path: Path) -> None:
    word = read_word(written(tmp_path, {"<dog>": torch.arange(4.0)}), created_by="test").sets["word"]
    assert word.state_dict()["tokens.word.vectors"].tolist() == [[0, 1, 2, 3]]


def test_a_word_needs_a_name(tmp_path: Path) -> None:
    path = written(tmp_path, star(torch.ones(1, 4)))
    with pytest.raises(BadInput, match="give it a name"):
        read_word(path, created_by="test")
    with pytest.raises(BadInput, match="give it a name"):
        read_word(path, name="my dog", created_by="test")
    with pytest.raises(BadFile, match="not one learned word"):
        read_word(written(tmp_path, identity()), name="dog", created_by="test")


@pytest.mark.parametrize("ending", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize("count", [1, 2])
def test_diffusers_reads_our_word(ending: str, count: int, tmp_path: Path) -> None:
    vectors = torch.randn(count, 32, generator=torch.Generator().manual_seed(1))
    concept = read_word(written(tmp_path, star(vectors)), name="dog", created_by="test")
    path = tmp_path / f"dog.{ending}"
    write_textual_inversion(path, concept)
    back = read_word(path, created_by="test").sets["word"]
    assert back.state_dict()["tokens.word.vectors"].equal(vectors)

    base = UNet3D.tiny(0)
    with base.attached(concept.sets["word"]), torch.no_grad():
        expected = base.encode_text(["a <dog> runs"])
        plain = base.encode_text(["a dog runs"])
    stock = UNet3D.tiny(0).pipeline()
    stock.load_textual_inversion(str(path))
    prompt = stock.maybe_convert_prompt("a <dog> runs", stock.tokenizer)
    ids = stock.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = stock.text_encoder(ids).last_hidden_state
    assert not torch.allclose(expected, plain, atol=1e-2)
    torch.testing.assert_close(states, expected, atol=1e-6, rtol=1e-5)


def test_textual_inversion_has_three_endings(tmp_path: Path) -> None:
    concept = read_word(written(tmp_path, star(torch.ones(1, 4))), name="dog", created_by="test")
    with pytest.raises(BadInput, match=r"\.safetensors, \.pt or \.bin"):
        write_textual_inversion(tmp_path / "dog.zip", concept)
    write_textual_inversion(tmp_path / "dog.safetensors", concept)
    assert load_file(tmp_path / "dog.safetensors").keys() == {"<dog>"}


def test_a_subject_is_joined_from_two_files(tmp_path: Path) -> None:
    word = read_word(written(tmp_path, star(torch.ones(1, 4))), name="dog", word="dog", created_by="test")
    adapter = read_adapters(written(tmp_path, {"state_dict": identity(), "step": 500}), name="dog", created_by="test")
    subject = join([adapter, word])
    assert subject.sets.keys() == {"word", "identity"}
    assert subject.meta.word == "dog" and subject.meta.steps == {"identity": 500} and subject.meta.role == "subject"
    write_word(tmp_path / "word.pth", subject)
    write_adapters(tmp_path / "identity.pth", subject)
    assert read_tensors(tmp_path / "identity.pth")[0].keys() == identity().keys()
    with pytest.raises(BadInput, match="a second set word"):
        join([subject, word])
    with pytest.raises(BadInput, match="cannot be joined"):
        join([adapter, replace(word, meta=replace(word.meta, name="cat"))])
    with pytest.raises(Unsupported, match="0 learned words"):
        write_word(tmp_path / "none.pth", adapter)
