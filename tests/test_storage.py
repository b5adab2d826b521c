"""Weights kept in 8 bits: how far they are from their own, what that changes, and what room it saves."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dreamvideo as dv
from dreamvideo import api, bases, memory, methods
from dreamvideo.adapters import layers
from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.layers import STORED, Conv2d, Conv3d, Linear
from dreamvideo.adapters.lora import LoRA
from dreamvideo.adapters.storage import FORMATS, SCALE, parameter, store
from dreamvideo.analysis.weights import changes
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept
from dreamvideo.diffusion import generator
from dreamvideo.errors import Unsupported
from dreamvideo.recipe import resolve
from dreamvideo.sample import SampleConfig, check_base

SMALL = SampleConfig(frames=2, height=16, width=16, steps=2)
SAYS = {"int8": 0.02, "fp8": 0.12}
"""Format -> largest relative error of what a tiny base says. Random layers make of small errors large ones."""
TEACHES = {"int8": 0.04, "fp8": 0.2}
"""Format -> largest relative error of a gradient."""
HARSH = {"videocrafter": 4.0}
"""Family -> a factor on both: this one normalises every channel of a tiny base by itself, over few pixels."""
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Linear(6, 10), (2, 5, 6)),
    "linear without bias": (lambda: Linear(6, 10, bias=False), (3, 6)),
    "convolution": (lambda: Conv2d(6, 10, 3, padding=1), (2, 6, 5, 4)),
    "strided": (lambda: Conv2d(6, 10, 3, stride=2, padding=1, groups=2), (2, 6, 8, 7)),
    "single pixels": (lambda: Conv2d(6, 10, 1), (2, 6, 5, 4)),
    "over frames": (lambda: Conv3d(6, 10, (3, 1, 1), padding=(1, 0, 0)), (2, 6, 5, 4, 3)),
    "over one frame": (lambda: Conv3d(6, 10, (3, 1, 1), padding=(1, 0, 0)), (2, 6, 1, 4, 3)),
    "over frames and pixels": (lambda: Conv3d(6, 10, 3, padding=1), (2, 6, 5, 4, 3)),
}


@pytest.fixture(params=sorted(FORMATS))
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=sorted(LAYERS))
def layer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A frozen layer, and an input for it."""
    make, shape = LAYERS[request.param]
    torch.manual_seed(0)
    return make().requires_grad_(False), torch.randn(shape)


def said(base: VideoBase) -> Tensor:
    x, text = torch.randn(2, 4, 4, 4, 4, generator=generator("x")), base.encode_text(["a dog", ""])
    return base.predict(x, torch.tensor([40, 800]), text)


def apart(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def learnable(base: VideoBase, kind: str) -> AdapterSet:
    """A set that has left its start, on layers that can be stored."""
    sites = base.linears("space", ["attn2.*", "ff.*"]) if kind == "lora" else base.weights("space", ["*.attn1.*"])
    adapters = AdapterSet(LoRA(rank=4) if kind == "lora" else Delta(), sites)
    with torch.no_grad():
        for p in adapters.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator("set", p.numel()))
    return adapters.requires_grad_(True)


def gradients(base: VideoBase, adapters: AdapterSet, *, rematerialise: bool = False) -> Tensor:
    """Of all that a set learns, in one row."""
    with base.attached(adapters), base.learning(rematerialise=rematerialise):
        of = torch.autograd.grad(said(base).square().mean(), adapters.parameters())
    assert {gradient.dtype for gradient in of} == {torch.float32}
    return torch.cat([gradient.flatten() for gradient in of])


def restore(base: VideoBase) -> None:
    """Give a stored base its restored weights for its own."""
    for module in base.parts.denoiser.modules():
        if SCALE in module._buffers:
            module.weight = nn.Parameter(parameter(module, "weight"), requires_grad=False)
            del module.weight_scale


# -- a layer ----------------------------------------------------------------------------------------------------------


def test_every_value_is_within_the_formats_own_bound(layer: tuple[nn.Module, Tensor], form: str):
    module, _ = layer
    # Channels of any size, one of nothing, and within a channel values down to nothing.
    rows = module.weight.shape[1:]
    module.weight *= (10.0 ** torch.linspace(-6, 3, 10)).view(-1, *(1 for _ in rows))
    module.weight[4] = 0
    module.weight.flatten(1)[:, 0] *= 1e-4
    own = module.weight.clone()
    largest = own.abs().flatten(1).amax(1).view(-1, *(1 for _ in rows))
    store(module, FORMATS[form])
    error = (parameter(module, "weight") - own).abs()
    # Half a step. Those of fp8 are an eighth of the power of two below the value, and 2^-9 near zero.
    bounds = {"int8": largest / 127 / 2, "fp8": torch.maximum(own.abs() * 2**-4, largest / 448 * 2**-10)}
    assert (error <= bounds[form] * (1 + 1e-5)).all()
    assert error.max() > 0
    assert module.weight.dtype == FORMATS[form].dtype


def test_half_precision_rounds_once_more(form: str):
    module = Linear(64, 64).requires_grad_(False)
    own = module.weight.clone()
    exact, half = (Linear(64, 64).requires_grad_(False).to(dtype) for dtype in (torch.float32, torch.bfloat16))
    for each in (exact, half):
        each.weight.copy_(own)
        store(each, FORMATS[form])
    restored = parameter(half, "weight")
    assert restored.dtype == torch.bfloat16 == half.weight_scale.dtype
    assert apart(restored.float(), own) < apart(parameter(exact, "weight"), own) + 2**-8


def test_layer_says_and_teaches_what_one_of_the_restored_weight_does(layer: tuple[nn.Module, Tensor], form: str):
    module, x = layer
    store(module, FORMATS[form])
    x = x.requires_grad_()
    learned = [x] if module.bias is None else [x, module.bias.requires_grad_()]
    y = module(x)
    plain = module.through(x, parameter(module, "weight"), module.bias)
    assert torch.equal(y, plain)
    towards = torch.randn(y.shape)
    for ours, theirs in zip(*(torch.autograd.grad(out, learned, towards) for out in (y, plain)), strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does so itself
def test_stored_layer_compiles_whole(layer: tuple[nn.Module, Tensor]):
    module, x = layer
    store(module, FORMATS["int8"])
    x = x.requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    plain, ours = module(x), compiled(x)
    assert torch.allclose(plain, ours, atol=1e-5)
    of_plain, of_ours = (torch.autograd.grad(y.square().sum(), x)[0] for y in (plain, ours))
    assert torch.allclose(of_plain, of_ours, atol=1e-4)
    torch._dynamo.reset()


# -- a base -----------------------------------------------------------------------------------------------------------


def test_base_says_nearly_the_same(base: VideoBase, form: str):
    exact, dtype, fingerprint = said(base), base.dtype, base.fingerprint
    base.store(form)
    assert 0 < apart(said(base), exact) < SAYS[form] * HARSH.get(base.family, 1)
    assert (base.precision, base.dtype, base.fingerprint) == (form, dtype, fingerprint)


def test_blocks_take_a_quarter_of_the_room(base: VideoBase, form: str):
    def taken(model: nn.Module) -> int:
        return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    parts = base.parts
    blocks = (parts.denoiser.down_blocks, parts.denoiser.mid_block, parts.denoiser.up_blocks)
    others = {name for name, _ in parts.denoiser.named_parameters() if ".weight" in name and "block" not in name}
    before, whole = sum(taken(block) for block in blocks), memory.weights(base)
    base.store(form)
    after = sum(taken(block) for block in blocks)
    # The rest are norms, biases and scales, which weigh more in layers as narrow as these.
    assert 0.25 < after / before < 0.32
    assert memory.weights(base) == whole - before + after
    stored = {name for name, p in parts.denoiser.named_parameters() if p.dtype == FORMATS[form].dtype}
    assert others and not others & stored
    inside = [m for block in blocks for m in block.modules() if isinstance(m, STORED)]
    assert len(stored) == len(inside) and all(SCALE in m._buffers for m in inside)
    assert not any(p.dtype == FORMATS[form].dtype for part in parts.modules[1:] for p in part.parameters())


@pytest.mark.parametrize("kind", ["lora", "delta"])
def test_what_is_learned_gets_nearly_the_same_gradient(base: VideoBase, kind: str, form: str):
    adapters = learnable(base, kind)
    exact = gradients(base, adapters)
    base.store(form)
    ours = gradients(base, adapters)
    assert 0 < apart(ours, exact) < TEACHES[form] * HARSH.get(base.family, 1)
    assert apart(gradients(base, adapters, rematerialise=True), ours) < 1e-4
    restore(base)
    assert apart(gradients(base, adapters), ours) < 1e-4


@pytest.mark.parametrize("kind", ["lora", "delta"])
def test_accelerators_precision_is_computed_in(unet3d: VideoBase, kind: str, form: str, tmp_path: Path):
    """bf16 beside float32 adapters, under autocast, as on an accelerator."""
    unet3d.save(tmp_path / "base")
    base = bases.load(str(tmp_path / "base"), dtype="bf16")
    adapters = learnable(base, kind)
    base.store(form)
    assert (base.precision, base.dtype) == (form, torch.bfloat16)
    with base.autocast():
        ours = gradients(base, adapters)
        restore(base)
        exact = gradients(base, adapters)
    assert ours.isfinite().all() and apart(ours, exact) < 0.05


def kept(base: VideoBase, adapters: AdapterSet) -> int:
    """Bytes that autograd keeps for a backward pass, beside the base's tensors and the learned ones."""
    own = [t for part in base.parts.modules for t in (*part.parameters(), *part.buffers())]
    known = {t.untyped_storage().data_ptr() for t in (*own, *adapters.parameters())}
    storages: dict[int, tuple[int, Tensor]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with base.attached(adapters), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = said(base).square().mean()
    assert loss.requires_grad
    return sum(size for size, _ in storages.values())


def test_backward_pass_keeps_no_restored_weight(base: VideoBase, form: str, monkeypatch: pytest.MonkeyPatch):
    adapters = learnable(base, "lora")
    exact = kept(base, adapters)
    base.store(form)
    ours = kept(base, adapters)
    # A restored weight kept would be a tensor of its own. Inputs of frozen convolutions are not kept, either.
    assert 0 < ours <= exact

    def keeping(layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        return layer.through(x, parameter(layer, "weight"), bias)

    monkeypatch.setattr(layers, "through_stored", keeping)
    weights = sum(4 * p.numel() for p in base.parts.denoiser.parameters() if p.dtype == FORMATS[form].dtype)
    assert kept(base, adapters) > exact + weights / 2


def test_preflight_counts_what_is_stored(unet3d: VideoBase, motion_concept: Concept):
    def need() -> memory.Need:
        recipe = resolve("lora-motion", unet3d, motion_concept, settings=[{"train": {"batch": 1}}])
        (stage,) = recipe.method.stages(unet3d, motion_concept, seed=0)
        return memory.estimate(recipe, unet3d, motion_concept, stage)

    exact = need()
    unet3d.store("int8")
    stored = need()
    assert stored.frozen == memory.weights(unet3d, ()) < exact.frozen
    assert stored.passing <= exact.passing


def test_stored_base_is_not_written_and_not_stored_twice(base: VideoBase, form: str, tmp_path: Path):
    base.store(form)
    with pytest.raises(Unsupported, match=f"{base.name} is stored as {form}") as caught:
        base.save(tmp_path / "base")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()
    with pytest.raises(Unsupported, match="already"):
        base.store("int8")


# -- the whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_folder_is_read_and_stored(base: VideoBase, dtype: str, tmp_path: Path):
    base.save(tmp_path / "base")
    stored = bases.load(str(tmp_path / "base"), dtype=dtype)
    base.store(dtype)
    assert stored.precision == dtype
    assert torch.equal(said(stored), said(base))


@pytest.mark.parametrize(
    "method", ["dreamvideo-subject", "lora-subject", "custom-diffusion", "finetune-motion", "motion-director"]
)
def test_method_learns_on_stored_layers_what_fits_both(method: str, dog: Path, turn: Path, tmp_path: Path):
    exact, stored = dv.load_base("tiny", device="cpu"), dv.load_base("tiny", dtype="int8", device="cpu")
    before = {name: tensor.clone() for name, tensor in stored.parts.denoiser.state_dict().items()}
    kind = methods.find(method)
    about = {"word": "dog"} if kind.learns == "image" else {"caption": "a car"}
    rest = {"class_count": 1} if "class_count" in kind.__dataclass_fields__ else {}
    settings = [{"train": {"steps": 2, "batch": 1}, "method": rest}]
    source = dog if kind.learns == "image" else turn
    concept = api.learn(stored, source, method=method, out=tmp_path / "run", settings=settings, **about)
    for adapters in concept.sets.values():
        assert all(t.dtype == torch.float32 and t.isfinite().all() for t in adapters.state_dict().values())
    after = stored.parts.denoiser.state_dict()
    assert all(torch.equal(before[name].float(), tensor.float()) for name, tensor in after.items())
    for base in (exact, stored):
        check_base(base, [concept])
    video = dv.generate(stored, "a dog runs", concepts=[concept], config=SMALL)
    assert video.made["base"]["dtype"] == "int8"
    if method == "finetune-motion":
        rates = [[change.rate for change in changes(base, concept)] for base in (exact, stored)]
        assert rates[0] and all(math.isclose(*pair, rel_tol=0.01) for pair in zip(*rates, strict=True))


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_video_of_a_stored_base_is_made_again(run, dtype: str):
    words = ("--base", "tiny", "--dtype", dtype, "--steps", 2, "--frames", 2, "--out", "made.mp4")
    code, _, err = run("generate", "a dog", *words)
    assert code == 0, err
    assert json.loads(Path("made.mp4.json").read_text())["base"]["dtype"] == dtype
    code, _, err = run("generate", "--from", "made.mp4.json", "--out", "again.mp4")
    assert code == 0, err
    assert Path("again.mp4").read_bytes() == Path("made.mp4").read_bytes()
    again = json.loads(Path("again.mp4.json").read_text())
    assert again["base"]["dtype"] == dtype


@pytest.mark.parametrize("name", ["tiny", "emojiworld"])
def test_other_precision_is_refused_in_one_line(run, name: str):
    code, out, err = run("generate", "a dog", "--base", name, "--dtype", "int4")
    assert (code, out) == (2, "")
    refused = [line for line in err.splitlines() if line.startswith("dreamvideo: ")]
    assert refused == ["dreamvideo: --dtype int4: one of auto, fp32, bf16, fp16, int8, fp8"]


def test_other_padding_is_refused() -> None:
    layer = Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    with pytest.raises(Unsupported, match="circular"):
        store(layer, FORMATS["int8"])
