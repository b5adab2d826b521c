"""Low-rank and full-rank deltas against plain layers, their sizes at full size, and LoRA files of other tools."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet3DConditionModel, UNetMotionModel
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from dreamvideo import bases, methods
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.file import ConceptFile, Meta, load, save
from dreamvideo.adapters.graft import AdapterSet, Kind, Site
from dreamvideo.adapters.kv import KeyValue
from dreamvideo.adapters.lora import LoRA
from dreamvideo.adapters.words import learned_word
from dreamvideo.bases.base import VideoBase
from dreamvideo.bases.unet3d import UNet3D
from dreamvideo.concept import Concept
from dreamvideo.convert import Facts, convert
from dreamvideo.diffusion import generator
from dreamvideo.errors import BadFile, BadInput, Unsupported
from dreamvideo.official import describe, read_lora, write_lora, write_motion_lora
from dreamvideo.official.lora import layer_path

MOTION = ("attn1.*", "attn2.*", "ff.*")


def randn(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(name))


def disturb(adapters: AdapterSet, *, by: float = 0.1) -> AdapterSet:
    """The set, moved away from its transparent start."""
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            parameter += by * randn(*parameter.shape, name=name)
    return adapters


def output(base: VideoBase) -> Tensor:
    x = randn(1, 4, 3, 4, 4, name="x")
    with torch.no_grad(), base.autocast():
        return base.predict(x, torch.tensor([400]), base.encode_text(["a dog"]).float()).float()


def axes(base: VideoBase) -> tuple[str, ...]:
    """What there is to learn along: an image model has no layers over time."""
    return ("space",) if base.family == "inflated" else ("space", "time")


def with_conv(base: VideoBase) -> AdapterSet:
    """Low-rank deltas of linear layers and, as kohya's tools make them too, of convolutions."""
    sites = [site for axis in axes(base) for site in base.linears(axis, MOTION if axis == "time" else ("attn2.*",))]
    convs = [site for site in base.weights("space") if len(site.shape) == 4 and "conv" in site.path]
    return disturb(AdapterSet(LoRA(rank=3, alpha=6.0), [*sites, *(replace(site, port="out") for site in convs[:4])]))


# -- the formulas -----------------------------------------------------------------------------------------------------


def leaf(base: VideoBase, *, ndim: int, port: str = "out") -> tuple[Site, Any]:
    """A layer of the base whose weight has `ndim` axes, strided or padded where there is such a one."""
    sites = [s for axis in ("space", "time") for s in base.weights(axis) if s.port == "weight" and len(s.shape) == ndim]
    site = next((s for s in sites if "downsampler" in s.path), sites[0])
    return replace(site, port=port), base.locate(site)


@pytest.mark.parametrize(("ndim", "shape"), [(2, (2, 5)), (4, (2, 6, 6)), (5, (2, 4, 3, 3))])
def test_lora_adds_b_a_to_the_weight(unet3d: VideoBase, ndim: int, shape: tuple[int, ...]) -> None:
    site, layer = leaf(unet3d, ndim=ndim)
    fan_in = site.shape[1]
    x = randn(*shape, fan_in, name="x") if ndim == 2 else randn(shape[0], fan_in, *shape[1:], name="x")
    adapters = disturb(AdapterSet(LoRA(rank=3, alpha=1.5), [site]))
    state = adapters.state_dict()
    low, high = (state[f"{site.key}.{part}"] for part in ("down", "up"))
    with torch.no_grad():
        merged = layer.weight + 0.5 * (high @ low.flatten(1)).view(site.shape)
        stock = nn.Linear.forward if ndim == 2 else None
        expected = (
            torch.nn.functional.linear(x, merged, layer.bias) if stock else layer._conv_forward(x, merged, layer.bias)
        )
        with unet3d.attached(adapters):
            torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_lora_starts_with_the_papers_distribution() -> None:
    state = AdapterSet(LoRA(rank=8), [Site("a", "out", "space", 300, (300, 400))]).state_dict()
    assert not state["a.out.up"].any()
    assert state["a.out.down"].std().item() == pytest.approx(1 / 8, rel=0.05)


def test_dropout_acts_while_learning_alone(unet3d: VideoBase) -> None:
    (site, *_) = unet3d.linears("space", ("attn1.to_q",))
    layer, x = unet3d.locate(site), randn(1, 7, site.shape[1], name="x")
    adapters = disturb(AdapterSet(LoRA(rank=4, dropout=0.5), [site]), by=1.0)
    with unet3d.attached(adapters), torch.no_grad():
        stock = layer.stock.forward(layer, x)
        calm = layer(x) - stock
        assert torch.equal(layer(x) - stock, calm)
        adapters.requires_grad_(True)
        delta = layer(x) - stock
        gone = delta.abs() < 1e-6
        assert 0.3 < gone.float().mean() < 0.7
        torch.testing.assert_close(delta[~gone], 2 * calm[~gone], atol=1e-4, rtol=1e-4)
        adapters.requires_grad_(False)
        assert torch.equal(layer(x) - stock, calm)


@pytest.mark.parametrize("axis", ["space", "time"])
def test_a_delta_is_another_weight(base: VideoBase, axis: str) -> None:
    """Every parameter of the axis, of linear layers, convolutions, norms: the sum of both is the model that fine-tuning
    would have made."""
    if axis not in axes(base):
        pytest.skip(f"{base.family} has no layers over {axis}")
    adapters = disturb(AdapterSet(Delta(), base.weights(axis)), by=0.02)
    assert {len(site.shape) for site in adapters.sites} >= {1, 2}
    with base.attached(adapters):
        scaled = [output(base)]
        adapters.scale(0.5)
        scaled.append(output(base))
    before = output(base)
    state, own = adapters.state_dict(), dict(base.parts.denoiser.named_parameters())
    assert {name.removesuffix(".delta") for name in state} <= own.keys()
    for factor, result in zip((1.0, 0.5), scaled, strict=True):
        with torch.no_grad():
            for name, delta in state.items():
                own[name.removesuffix(".delta")] += factor * delta
            torch.testing.assert_close(output(base), result, atol=1e-4, rtol=1e-4)
            for name, delta in state.items():
                own[name.removesuffix(".delta")] -= factor * delta
    assert not torch.allclose(scaled[0], before, atol=1e-2)


def test_space_and_time_share_no_parameter_and_leave_none_out(base: VideoBase) -> None:
    keys = [site.key for axis in axes(base) for site in base.weights(axis)]
    assert sorted(keys) == sorted(name for name, _ in base.parts.denoiser.named_parameters())


def test_a_parameter_that_cannot_be_tuned_is_not_left_out_silently() -> None:
    tiny = UNet3D.tiny(0)
    tiny.parts.denoiser.mid_block.register_parameter("table", nn.Parameter(torch.zeros(2)))
    again = UNet3D(tiny.origin, parts=tiny.parts, defaults=tiny.defaults)
    with pytest.raises(Unsupported, match=r"parameter mid_block\.table of base tiny cannot be tuned"):
        again.weights("space")
    assert again.weights("space", ("conv_in.*",)) and again.weights("time")


def test_fine_tuning_a_delta_is_fine_tuning(unet3d: VideoBase) -> None:
    """Adam moves a delta from zero as it moves the parameter itself."""
    name = "conv_out.weight"
    adapters = AdapterSet(Delta(), unet3d.weights("space", (name,))).requires_grad_(True)
    own = unet3d.parts.denoiser.get_parameter(name)
    start, x, text = own.detach().clone(), randn(1, 4, 2, 4, 4, name="x"), unet3d.encode_text(["a dog"])

    def learned(parameters: list[nn.Parameter]) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0)
        for _ in range(3):
            unet3d.predict(x, torch.tensor([9]), text).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    with unet3d.attached(adapters):
        learned(adapters.parameters())
    learned([own.requires_grad_(True)])
    torch.testing.assert_close(adapters.state_dict()[f"{name}.delta"], own.detach() - start, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("detach", [True, False])
def test_the_start_token_teaches_keys_and_values_nothing(unet3d: VideoBase, detach: bool) -> None:
    (site, *_) = unet3d.linears("space", ("attn2.to_k",))
    adapters = AdapterSet(KeyValue(detach_start=detach), [site]).requires_grad_(True)
    layer, text = unet3d.locate(site), randn(2, 6, site.shape[1], name="text")
    with unet3d.attached(adapters):
        layer(text)[:, :1].sum().backward()
        assert bool(adapters.parameters()[0].grad.any()) != detach
        disturb(adapters)
        expected = text @ (layer.weight + adapters.parameters()[0]).T
        torch.testing.assert_close(layer(text), expected, atol=1e-5, rtol=1e-5)


def test_two_sets_add_up_in_any_order(base: VideoBase) -> None:
    sets = [
        disturb(AdapterSet(LoRA(rank=2), base.linears("space", ("attn1.*",)))),
        disturb(AdapterSet(LoRA(rank=4), base.linears("space", ("attn1.*",)), seed=1)),
        disturb(AdapterSet(Delta(), base.weights("space")), by=0.01),
    ]
    with base.attached(*sets):
        forwards = output(base)
    with base.attached(sets[2], sets[1], sets[0]):
        assert torch.equal(output(base), forwards)


# -- ports ------------------------------------------------------------------------------------------------------------


def test_zero_deltas_change_no_bit_in_half_precision(tmp_path: Path, unet3d: VideoBase) -> None:
    unet3d.save(tmp_path / "base")
    half = bases.load(str(tmp_path / "base"), dtype="bf16")
    before, keys = output(half), set(half.parts.denoiser.state_dict())
    sets = [AdapterSet(Delta(), half.weights(axis)) for axis in ("space", "time")]
    with half.attached(*sets, AdapterSet(LoRA(rank=2), half.linears("space", ("attn1.*",)))):
        assert torch.equal(output(half), before)
        assert all(parameter.dtype == torch.float32 for adapters in sets for parameter in adapters.parameters())
    assert torch.equal(output(half), before) and set(half.parts.denoiser.state_dict()) == keys


def test_small_deltas_of_norms_count_in_half_precision(tmp_path: Path, unet3d: VideoBase) -> None:
    """1 + 0.001 is 1 in bfloat16: the sum must not be rounded to it."""
    unet3d.save(tmp_path / "base")
    half = bases.load(str(tmp_path / "base"), dtype="bf16")
    site = next(s for s in half.weights("space") if s.port == "weight" and "norm" in s.path and len(s.shape) == 1)
    adapters = AdapterSet(Delta(), [site]).requires_grad_(True)
    layer, x = half.locate(site), randn(2, site.width, 4, 4, name="x").bfloat16()
    with half.attached(adapters), half.autocast():
        before = layer(x).float()
        with torch.no_grad():
            adapters.parameters()[0].fill_(0.003)
        after = layer(x).float()
        after.sum().backward()
    assert not torch.equal(before, after)
    assert adapters.parameters()[0].grad.dtype == torch.float32


def test_what_is_frozen_for_a_while_takes_part(unet3d: VideoBase) -> None:
    adapters = disturb(AdapterSet(LoRA(rank=2), unet3d.linears("space", ("attn1.to_q",)))).requires_grad_(True)
    before = output(unet3d)
    with unet3d.attached(adapters):
        with adapters.frozen(), adapters.scaled(0.5):
            assert not any(parameter.requires_grad for parameter in adapters.parameters())
            half = output(unet3d)
        assert all(parameter.requires_grad for parameter in adapters.parameters())
        whole = output(unet3d)
    assert not torch.allclose(half, before, atol=1e-3) and not torch.allclose(half, whole, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "port"), [(LoRA(), "weight"), (Delta(), "out"), (Bottleneck(), "out"), (KeyValue(), "attn2")]
)
def test_a_kind_stands_on_its_own_ports_alone(kind: Kind, port: str) -> None:
    with pytest.raises(Unsupported, match=rf"a\.{port}: {kind.label} adapters stand on"):
        AdapterSet(kind, [Site("a", port, "space", 8, (8, 8))])


def test_a_layer_that_is_not_there_is_named(base: VideoBase) -> None:
    with pytest.raises(Unsupported, match=r"layer 'attn9\.\*': the space blocks of base .* have attn1\.to_q"):
        base.linears("space", ("attn1.to_q", "attn9.*"))


def test_sites_of_layers_survive_their_file(base: VideoBase, tmp_path: Path) -> None:
    sets = {"low": with_conv(base), "full": disturb(AdapterSet(Delta(), base.weights(axes(base)[-1])))}
    meta = Meta(name="x", role="subject", family=base.family, base=base.name, method="m", created_by="test")
    save(tmp_path / "x.safetensors", ConceptFile(meta, sets))
    again = load(tmp_path / "x.safetensors")
    assert all(again.sets[name].sites == adapters.sites for name, adapters in sets.items())
    with base.attached(*sets.values()):
        expected = output(base)
    for name, adapters in sets.items():
        state = again.sets[name].state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in adapters.state_dict().items())
    with base.attached(*again.sets.values()):
        torch.testing.assert_close(output(base), expected, atol=1e-5, rtol=1e-5)


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full() -> UNet3D:
    """ModelScopeT2V without storage; its sizes are diffusers' defaults."""
    tiny = UNet3D.tiny(0)
    with torch.device("meta"):
        denoiser = UNet3DConditionModel()
    return UNet3D(tiny.origin, parts=replace(tiny.parts, denoiser=denoiser), defaults=tiny.defaults)


def size(kind: Kind, sites: tuple[Site, ...]) -> int:
    with torch.device("meta"):
        return AdapterSet(kind, sites).count()


def test_the_papers_split_of_the_parameters(full: UNet3D) -> None:
    space, time = full.weights("space"), full.weights("time")
    assert (len(space), len(time)) == (682, 1480 - 682)
    assert size(Delta(), space) == 863_860_164
    assert size(Delta(), time) == 547_373_696


@pytest.mark.parametrize(
    ("rank", "axis", "layers", "expected"),
    [
        (32, "space", ("attn2.to_k", "attn2.to_v"), 1_847_296),  # the LoRA baseline, subject
        (32, "time", ("attn1.to_k", "attn1.to_v", "attn2.to_k", "attn2.to_v"), 3_325_952),  # and motion
        (32, "space", ("attn1.to_k", "attn1.to_v"), 1_597_440),  # what "all attention layers" has beside these
        (2, "time", MOTION, 779_520),  # MotionDirector
        (4, "time", MOTION, 1_559_040),
        (1, "space", ("attn1.*", "ff.*"), 274_560),
        (4, "time", ("attn1.*", "attn2.*"), 831_488),  # Customize-A-Video's T-LoRA and S-LoRA
        (1, "space", ("attn1.*", "attn2.*"), 207_488),
        (4, "space", ("attn?.to_q", "attn?.to_k", "attn?.to_v"), 630_272),  # CustomCrafter
    ],
)
def test_low_rank_parameter_counts(full: UNet3D, rank: int, axis: str, layers: tuple[str, ...], expected: int) -> None:
    assert size(LoRA(rank=rank), full.linears(axis, layers)) == expected


def test_custom_diffusions_parameter_count(full: UNet3D) -> None:
    assert size(KeyValue(), full.linears("space", ("attn2.to_k", "attn2.to_v"))) == 25_559_040


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [(1, 1_024), (4, 4_096)],  # textual inversion, and Customize-A-Video's four words
)
def test_words_parameter_counts(full: UNet3D, vectors: int, expected: int, subject_concept: Concept) -> None:
    """On a text encoder of ModelScopeT2V's width."""
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514, hidden_size=1024, intermediate_size=8, num_attention_heads=8, num_hidden_layers=1
        )
    )
    base = UNet3D(full.origin, parts=replace(full.parts, text_encoder=text), defaults=full.defaults)
    (stage,) = methods.find("textual-inversion")(vectors=vectors).stages(base, subject_concept, seed=0)
    assert sum(adapters.count() for adapters in stage.learn.values()) == expected


# -- other tools' files -----------------------------------------------------------------------------------------------


def concept_of(base: VideoBase, sets: Mapping[str, AdapterSet]) -> ConceptFile:
    meta = Meta(name="dog", role="subject", family=base.family, base=base.name, method="lora-subject", created_by="t")
    return ConceptFile(meta, sets)


def attached_output(base: VideoBase, concept: ConceptFile) -> Tensor:
    with base.attached(*concept.sets.values()):
        return output(base)


@pytest.mark.parametrize("family", ["unet3d", "animatediff"])
def test_peft_says_the_same_with_our_file(family: str, tmp_path: Path) -> None:
    base = bases.available()[family].tiny(0)
    concept = concept_of(base, {"subject": with_conv(base)})
    expected, before = attached_output(base, concept), output(base)
    path = write_lora(tmp_path, concept)
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    config = LoraConfig(**{key.removeprefix("unet."): value for key, value in said.items()})
    other = bases.available()[family].tiny(0)
    inject_adapter_in_model(config, other.parts.denoiser)
    tensors = {name.removeprefix("unet."): tensor for name, tensor in load_file(path).items()}
    seen = set_peft_model_state_dict(other.parts.denoiser, tensors)
    assert not seen.unexpected_keys
    assert not torch.allclose(expected, before, atol=1e-2)
    torch.testing.assert_close(output(other), expected, atol=1e-5, rtol=1e-5)


STOCK = {"animatediff": "AnimateDiffPipeline", "inflated": "StableDiffusionPipeline"}


@pytest.fixture(params=STOCK)
def stock(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[VideoBase, DiffusionPipeline]:
    """A base, and the same weights read by diffusers alone."""
    base = bases.available()[request.param].tiny(0)
    base.save(tmp_path / "base")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "base")
    assert type(pipe).__name__ == STOCK[request.param]
    assert not [m for m in pipe.unet.modules() if type(m).__module__.startswith("dreamvideo")]
    return base, pipe


def sampled(pipe: DiffusionPipeline, base: VideoBase) -> Tensor:
    """Two denoising steps of a pipeline around the base's parts, or around parts like them."""
    frames = {"num_frames": 3} if base.family == "animatediff" else {}
    start = randn(1, 4, *frames.values(), 4, 4, name="start")
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(
            prompt_embeds=base.encode_text(["a dog"]), guidance_scale=1.0, height=16, width=16, num_inference_steps=2,
            output_type="latent", latents=start, return_dict=False, **frames,
        )[0]  # fmt: skip


def test_a_stock_pipeline_says_the_same_with_our_file(
    stock: tuple[VideoBase, DiffusionPipeline], tmp_path: Path
) -> None:
    base, pipe = stock
    concept = concept_of(base, {"subject": with_conv(base)})
    plain = sampled(base.pipeline(), base)
    torch.testing.assert_close(sampled(pipe, base), plain, atol=1e-5, rtol=1e-5)
    with base.attached(*concept.sets.values()):
        expected = sampled(base.pipeline(), base)
    assert not torch.allclose(expected, plain, atol=1e-1)
    write_lora(tmp_path / "lora", concept)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    torch.testing.assert_close(sampled(pipe, base), expected, atol=1e-5, rtol=1e-5)
    pipe.unload_lora_weights()
    torch.testing.assert_close(sampled(pipe, base), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [4, 6])
def test_a_file_of_diffusers_says_the_same_here(
    alpha: int, stock: tuple[VideoBase, DiffusionPipeline], tmp_path: Path
) -> None:
    base, pipe = stock
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_out.0", "ff.net.2", "conv_out"])
    pipe.unet.add_adapter(config)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * randn(*parameter.shape, name=name)
    expected = sampled(pipe, base)
    pipe.save_lora_weights(tmp_path, get_peft_model_state_dict(pipe.unet), unet_lora_adapter_metadata=config.to_dict())
    concept = read_lora(
        tmp_path / "pytorch_lora_weights.safetensors", name="dog", created_by="test", family=base.family
    )
    with base.attached(*concept.sets.values()):
        torch.testing.assert_close(sampled(base.pipeline(), base), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.xfail(strict=True, raises=AttributeError, reason="diffusers 0.42: UNet3DConditionModel has no PEFT loader")
def test_the_stock_pipeline_of_text_to_video_loads_our_file(tmp_path: Path, unet3d: VideoBase) -> None:
    write_lora(tmp_path, concept_of(unet3d, {"subject": with_conv(unet3d)}))
    UNet3D.tiny(0).pipeline().load_lora_weights(str(tmp_path))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_file_of_peft_says_the_same_here(rslora: bool, tmp_path: Path, unet3d: VideoBase) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "ff.net.2", "conv_out"],
        rank_pattern={"to_q": 2},
        alpha_pattern={"ff.net.2": 3},
        use_rslora=rslora,
    )
    other = UNet3D.tiny(0)
    wrapped = get_peft_model(other.parts.denoiser, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * randn(*parameter.shape, name=name)
    expected = output(other)
    wrapped.save_pretrained(tmp_path / "peft")
    (written,) = convert([tmp_path / "peft"], tmp_path / "dog.safetensors", to="dreamvideo", facts=Facts(word="dog"))
    concept = load(written)
    assert concept.meta.role == "motion" and concept.sets.keys() == {"subject", "motion"}
    torch.testing.assert_close(attached_output(unet3d, concept), expected, atol=1e-5, rtol=1e-5)
    assert describe(tmp_path / "peft" / "adapter_model.safetensors")["format"] == "LoRA (PEFT)"
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(BadFile, match=r"adapter_config\.json must lie beside it"):
        read_lora(tmp_path / "peft" / "adapter_model.safetensors", name="dog", created_by="test")


def renamed(tensors: Mapping[str, Tensor], form: str, *, factor: float = 2.0) -> dict[str, Tensor]:
    """diffusers' file in another layout; where that has no alpha, B is multiplied by `factor`."""
    result = {}
    for name, tensor in tensors.items():
        path, part = name.removeprefix("unet.").split(".lora_")
        down = part == "A.weight"
        if form == "kohya":
            result[f"lora_unet_{path.replace('.', '_')}.lora_{'down' if down else 'up'}.weight"] = tensor
            result[f"lora_unet_{path.replace('.', '_')}.alpha"] = torch.tensor(6.0)
        elif form == "old":
            result[f"unet.{path}.lora.{'down' if down else 'up'}.weight"] = tensor if down else factor * tensor
        else:
            owner, _, linear = path.replace("to_out.0", "to_out").rpartition(".")
            result[f"unet.{owner}.processor.{linear}_lora.{'down' if down else 'up'}.weight"] = (
                tensor if down else factor * tensor
            )
    return result


@pytest.mark.parametrize("form", ["diffusers", "kohya", "old", "processor"])
def test_layouts_are_read_alike(base: VideoBase, form: str, tmp_path: Path) -> None:
    adapters = with_conv(base)
    if form == "processor":
        adapters = disturb(AdapterSet(LoRA(rank=3, alpha=6.0), base.linears("space", ("attn1.*", "attn2.*"))))
    concept = concept_of(base, {"subject": adapters})
    expected = attached_output(base, concept)
    path = write_lora(tmp_path, concept)
    if form != "diffusers":
        save_file(renamed(load_file(path), form), path)
    seen = describe(path)
    assert seen["format"] == f"LoRA ({'kohya' if form == 'kohya' else 'diffusers'})"
    assert (seen["layers"], seen["ranks"]) == (len(adapters.sites), [3])
    again = read_lora(path, name="dog", created_by="test", family=base.family)
    assert sum(len(part.sites) for part in again.sets.values()) == len(adapters.sites)
    torch.testing.assert_close(attached_output(base, again), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def pan() -> tuple[VideoBase, ConceptFile]:
    """A base with motion modules, and a low-rank motion of the layers that published ones have."""
    base = bases.available()["animatediff"].tiny(0)
    adapters = disturb(AdapterSet(LoRA(rank=2), base.linears("time", ("attn1.*", "attn2.*"))))
    return base, concept_of(base, {"motion": adapters})


def test_motion_lora_is_read_in_every_layout(pan: tuple[VideoBase, ConceptFile], tmp_path: Path) -> None:
    """MotionLoRA as AnimateDiff publishes it, as diffusers published the same, and as it writes such now."""
    base, concept = pan
    expected = attached_output(base, concept)
    tensors = load_file(write_lora(tmp_path, concept))
    theirs = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("unet.").replace(".transformer_blocks", ".temporal_transformer.transformer_blocks")
        name = name.replace(".attn1.", ".attention_blocks.0.processor.")
        name = name.replace(".attn2.", ".attention_blocks.1.processor.").replace("to_out.0", "to_out")
        theirs[name.replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up")] = tensor
    torch.save({"state_dict": theirs}, tmp_path / "pan.ckpt")
    assert describe(tmp_path / "pan.ckpt")["format"] == "LoRA (AnimateDiff)"
    save_file(renamed(tensors, "processor", factor=1.0), tmp_path / "diffusion_pytorch_model.safetensors")
    assert describe(tmp_path / "diffusion_pytorch_model.safetensors")["format"] == "LoRA (diffusers)"
    for source in ("pan.ckpt", "diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"):
        target = tmp_path / f"of {source}.safetensors"
        (written,) = convert([tmp_path / source], target, to="dreamvideo", facts=Facts(caption="a pan"))
        again = load(written)
        assert (again.meta.family, again.meta.role, again.meta.caption) == ("animatediff", "motion", "a pan")
        torch.testing.assert_close(attached_output(base, again), expected, atol=1e-5, rtol=1e-5)
    other = bases.available()["animatediff"].tiny(0)
    other.pipeline().load_lora_weights(str(tmp_path), weight_name="diffusion_pytorch_model.safetensors")
    torch.testing.assert_close(output(other), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_motion_lora_is_written_as_animatediff_adds_it(
    alpha: float | None, pan: tuple[VideoBase, ConceptFile], tmp_path: Path
) -> None:
    """Its loader takes a module's path from the tensor's name and adds B A to the weight."""
    base, concept = pan
    (sites,) = (adapters.sites for adapters in concept.sets.values())
    adapters = disturb(AdapterSet(LoRA(rank=2, alpha=alpha), sites))
    save(tmp_path / "pan.safetensors", concept_of(base, {"motion": adapters}))
    (written,) = convert([tmp_path / "pan.safetensors"], tmp_path / "out", to="official", facts=Facts())
    assert written.name == "dog.ckpt"
    tensors = torch.load(written, weights_only=True)["state_dict"]
    assert len(tensors) == 2 * len(sites)
    with base.attached(adapters):
        expected = output(base)
    merged, own = type(base).tiny(0), {}
    for name, parameter in merged.parts.denoiser.named_parameters():
        name = name.replace(".transformer_blocks.0", ".temporal_transformer.transformer_blocks.0")
        own[name.replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1.")] = parameter
    for name, down in tensors.items():
        if ".down." in name:
            place = name.replace(".processor", "").replace("_lora.down", "").replace("to_out", "to_out.0")
            with torch.no_grad():
                own[place] += tensors[name.replace(".down.", ".up.")] @ down
    torch.testing.assert_close(output(merged), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [LoRA(rank=1), Delta()])
def test_what_motion_lora_cannot_hold_is_refused(
    kind: Kind, pan: tuple[VideoBase, ConceptFile], tmp_path: Path
) -> None:
    base, concept = pan
    sites = (
        base.linears("space", ("attn1.to_q",)) if isinstance(kind, LoRA) else base.weights("time", ("*to_q.weight",))
    )
    several = concept_of(base, {**concept.sets, "more": AdapterSet(kind, sites)})
    with pytest.raises(Unsupported, match=r"to_q\.(out|weight): MotionLoRA, AnimateDiff's form, holds attentions"):
        write_motion_lora(tmp_path / "x.ckpt", several)
    twice = concept_of(base, {**concept.sets, "more": AdapterSet(LoRA(rank=1), concept.sets["motion"].sites)})
    with pytest.raises(Unsupported, match="has two low-rank deltas"):
        write_motion_lora(tmp_path / "x.ckpt", twice)
    assert not list(tmp_path.iterdir())


def test_flat_names_have_one_meaning() -> None:
    with torch.device("meta"):
        models = UNet3DConditionModel(), UNetMotionModel()
    paths = [path for model in models for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(paths) > 900
    assert [path for path in paths if layer_path(path.replace(".", "_")) != path] == []


def test_a_family_is_told_by_names_or_by_the_user(tmp_path: Path) -> None:
    base = bases.available()["animatediff"].tiny(0)
    for axis, family in (("time", "animatediff"), ("space", "unet3d")):
        sets = {"x": disturb(AdapterSet(LoRA(rank=1), base.linears(axis, ("attn1.to_q",))))}
        path = write_lora(tmp_path, concept_of(base, sets))
        concept = read_lora(path, name="x", created_by="test")
        assert (concept.meta.family, concept.meta.role) == (family, {"time": "motion", "space": "subject"}[axis])
    (written,) = convert([path], tmp_path / "x.safetensors", to="dreamvideo", facts=Facts(family="animatediff"))
    assert load(written).meta.family == "animatediff"
    with pytest.raises(BadInput, match="--family x: one of animatediff"):
        convert([path], tmp_path / "y.safetensors", to="dreamvideo", facts=Facts(family="x"))


def test_a_word_goes_beside_the_low_rank_set(tmp_path: Path, unet3d: VideoBase) -> None:
    (site,) = unet3d.sites("text", ("word",))
    sets = {"subject": with_conv(unet3d), "word": learned_word("dog", randn(1, site.width, name="w"), site)}
    save(tmp_path / "dog.safetensors", concept_of(unet3d, sets))
    written = convert([tmp_path / "dog.safetensors"], tmp_path / "out", to="diffusers", facts=Facts())
    assert [path.name for path in written] == ["pytorch_lora_weights.safetensors", "dog.safetensors"]
    assert load_file(written[1]).keys() == {"<dog>"}


@pytest.mark.parametrize(
    ("tensors", "error", "said"),
    [
        ({"unet.a.lora_A.weight": (2, 4)}, BadFile, "layer a has only one of its two matrices"),
        ({"unet.a.lora_A.weight": (2, 4), "unet.a.lora_B.weight": (4, 3)}, BadFile, "layer a: [4, 3] does not go with"),
        ({"unet.a.lora_A.weight": (0, 4), "unet.a.lora_B.weight": (4, 0)}, BadFile, "layer a: [4, 0] does not go with"),
        ({"unet.a.lora_A.weight": (2,), "unet.a.lora_B.weight": (4, 2)}, BadFile, "layer a: [4, 2] does not go with"),
        ({"unet.a.lora_A.weight": (2, 4), "unet.a.alpha": (2,)}, BadFile, "where one number was expected"),
        ({"unet.a.lora_A.weight": (2, 4), "unet.a.dora_scale": (2, 4)}, BadFile, "tensor unet.a.dora_scale is foreign"),
        ({"unet.a.lora_A.weight": (2, 4), "text_encoder.b.lora_A.weight": (2, 4)}, Unsupported, "the text encoder"),
        ({"lora_te_b.lora_down.weight": (2, 4)}, Unsupported, "the text encoder"),
        ({"transformer.a.weight": (2, 4)}, BadFile, "tensor transformer.a.weight is foreign"),
    ],
)
def test_other_contents_are_no_lora(tensors: dict, error: type, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(error) as caught:
        read_lora(path, name="x", created_by="test")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_configuration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"unet.a.lora_A.weight": torch.ones(2, 4)}, path, metadata={"lora_adapter_metadata": text})
    with pytest.raises(BadFile, match=r"x\.safetensors: its lora_adapter_metadata is not"):
        read_lora(path, name="x", created_by="test")


def test_two_deltas_of_one_layer_do_not_go_into_one_file(tmp_path: Path, unet3d: VideoBase) -> None:
    sites = unet3d.linears("space", ("attn1.to_q",))
    sets = {name: AdapterSet(LoRA(rank=1), sites, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    with pytest.raises(Unsupported, match="has two low-rank deltas"):
        write_lora(tmp_path, concept_of(unet3d, sets))


def test_an_alpha_of_zero_says_nothing(tmp_path: Path, unet3d: VideoBase) -> None:
    concept = concept_of(
        unet3d, {"subject": disturb(AdapterSet(LoRA(rank=2, alpha=0.0), unet3d.linears("space", ("ff.*",))))}
    )
    again = read_lora(write_lora(tmp_path, concept), name="x", created_by="test")
    assert torch.equal(attached_output(unet3d, again), output(unet3d))


def test_only_low_rank_sets_are_written(tmp_path: Path, unet3d: VideoBase) -> None:
    concept = concept_of(unet3d, {"full": AdapterSet(Delta(), unet3d.weights("time"))})
    with pytest.raises(Unsupported, match="concept dog has no low-rank set"):
        write_lora(tmp_path, concept)
    assert not list(tmp_path.iterdir())


def test_a_lora_of_another_size_is_refused_by_the_base(tmp_path: Path, unet3d: VideoBase) -> None:
    path = tmp_path / "x.safetensors"
    place = unet3d.linears("space", ("attn1.to_q",))[0].path
    save_file({f"unet.{place}.lora_A.weight": torch.ones(2, 5), f"unet.{place}.lora_B.weight": torch.ones(5, 2)}, path)
    concept = read_lora(path, name="x", created_by="test")
    with warnings.catch_warnings(), pytest.raises(BadFile, match=r"has no space port .*to_q\.out of shape \[5, 5\]"):
        warnings.simplefilter("error")
        unet3d.attach(*concept.sets.values())
