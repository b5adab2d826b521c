"""What is left out to be fast changes nothing: every exact saving against the plain computation, to rounding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dreamvideo import bases, sample
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.graft import AdapterSet, Site
from dreamvideo.adapters.layers import LAYERS
from dreamvideo.adapters.lora import LoRA
from dreamvideo.adapters.ports import BasicTransformerBlock, Condition, ResnetBlock2D, close_ports
from dreamvideo.bases.base import Compile, VideoBase
from dreamvideo.bases.text import batched
from dreamvideo.diffusion import generator
from dreamvideo.errors import Unsupported
from dreamvideo.progress import Progress, driven
from dreamvideo.sample import Composition, SampleConfig


@pytest.fixture(params=sorted(bases.available().keys() - {"inflated", "videocrafter"}))
def over_time(request: pytest.FixtureRequest) -> VideoBase:
    return bases.available()[request.param].tiny(0)


def noise(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(name))


def plain(base: VideoBase) -> nn.Module:
    """The base's denoiser in its stock classes, which save nothing."""
    close_ports(base.parts.denoiser, (BasicTransformerBlock, ResnetBlock2D, *LAYERS, *base.time_modules))
    return base.parts.denoiser


@contextmanager
def watched(modules: list[nn.Module]) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what goes into `modules`."""
    shapes: list[tuple[int, ...]] = []
    handles = [m.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))) for m in modules]
    yield shapes
    for handle in handles:
        handle.remove()


def layers(base: VideoBase, axis: str, name: str) -> list[nn.Module]:
    return [base.locate(site) for site in base.linears(axis, [name])]


@pytest.mark.parametrize("frames", [1, 3])
def test_ported_denoiser_says_and_teaches_what_the_stock_one_does(base: VideoBase, frames: int):
    """Text, where a word is learned, and input get the same gradients."""
    if base.family == "inflated" and frames > 1:
        pytest.skip("the stock image model takes no video")
    x, text = noise(2, 4, frames, 4, 4), noise(2, 77, 32, name="text").requires_grad_()
    t = torch.tensor([40, 800])

    def said() -> list[Tensor]:
        out = base.predict(x, t, text) if base.family != "inflated" else base.parts.denoiser(x[:, :, 0], t, text)[0]
        (gradient,) = torch.autograd.grad(out.square().sum(), text)
        return [out, gradient]

    ours = said()
    plain(base)
    for fast, slow in zip(ours, said(), strict=True):
        assert slow.abs().max() > 1e-3
        assert torch.allclose(fast, slow, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 5])
def test_text_becomes_keys_and_values_once_a_sample(base: VideoBase, frames: int):
    text = noise(2, 77, 32, name="text")
    with watched(layers(base, "space", "attn2.to_[kv]")) as shapes:
        base.predict(noise(2, 4, frames, 4, 4), torch.tensor([40, 800]), text)
    assert shapes
    assert set(shapes) == {(2, 77, 32)}


@pytest.mark.parametrize("frames", [1, 3])
def test_equal_prompts_become_keys_and_values_once(base: VideoBase, frames: int):
    """With the gradient that they have apart."""
    x, t = noise(3, 4, frames, 4, 4), torch.tensor([40, 500, 800])
    row = noise(77, 32, name="text").requires_grad_()

    def said(text: Tensor) -> tuple[Tensor, ...]:
        with watched(layers(base, "space", "attn2.to_[kv]")) as shapes:
            y = base.predict(x, t, text)
        assert {shape[0] for shape in shapes} == {1 if text is together else 3}
        return y, *torch.autograd.grad(y.square().sum(), row)

    together = batched({"a dog": row}, ["a dog"] * 3)
    for ours, apart in zip(said(together), said(together.clone()), strict=True):
        assert apart.abs().max() > 1e-3
        assert torch.allclose(ours, apart, atol=1e-5, rtol=1e-4)


def test_a_stock_pipelines_own_call_is_not_taken_for_ours(unet3d: VideoBase):
    """It may give every frame a text of its own, or another number of frames than the last call had."""
    x, text, t = noise(2, 4, 3, 4, 4), noise(2, 77, 32, name="text"), torch.tensor([40, 800])
    before = unet3d.parts.denoiser(x, t, text)[0]
    unet3d.predict(noise(2, 4, 2, 4, 4), t, text)
    assert torch.equal(unet3d.parts.denoiser(x, t, text)[0], before)
    assert torch.allclose(unet3d.predict(x, t, text), before, atol=1e-5)


def test_one_frame_needs_no_queries_and_keys_over_time(over_time: VideoBase):
    base = over_time
    with watched(layers(base, "time", "attn*.to_[qk]")) as shapes:
        base.predict(noise(2, 4, 1, 4, 4), torch.tensor([40, 800]), noise(2, 77, 32, name="text"))
        assert shapes == []
        base.predict(noise(2, 4, 2, 4, 4), torch.tensor([40, 800]), noise(2, 77, 32, name="text"))
        assert shapes


def test_what_is_learned_on_queries_still_gets_its_zero(over_time: VideoBase):
    """Adam treats a gradient of zero and none at all differently."""
    base = over_time
    adapters = AdapterSet(LoRA(rank=2), base.linears("time", ["attn1.to_q"])).requires_grad_(True)
    with base.attached(adapters):
        base.predict(noise(1, 4, 1, 4, 4), torch.tensor([40]), noise(1, 77, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() < 1e-6 for p in adapters.parameters())


class Products(TorchDispatchMode):
    """Counts matrix products that are made row by row of a batch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.bmm.default and len(args[0]) > 1
        return func(*args, **(kwargs or {}))


def test_permuted_tokens_are_multiplied_at_once(over_time: VideoBase):
    """And not every row of the batch on its own; what comes out is compared above."""
    x, t, text = noise(1, 4, 3, 4, 4), torch.tensor([500]), noise(1, 77, 32, name="text")

    def by_row() -> int:
        leaf = x.clone().requires_grad_()
        with Products() as products:
            torch.autograd.grad(over_time.predict(leaf, t, text).square().sum(), leaf)
        return products.count

    ours = by_row()
    close_ports(over_time.parts.denoiser, LAYERS)
    assert ours == 0 < by_row()


@pytest.mark.parametrize("frames", [1, 4])
def test_convolution_over_frames_is_one_of_an_image(unet3d: VideoBase, frames: int, monkeypatch: pytest.MonkeyPatch):
    """Learned deltas and LoRA on it included."""
    base = unet3d
    (site,) = base.weights("time", ["mid_block.temp_convs.0.conv2.3.weight"])
    layer, x = base.locate(site), noise(2, site.shape[1], frames, 4, 4)
    sets = [AdapterSet(Delta(), [site]), AdapterSet(LoRA(rank=2), [_output(base, site.path)])]
    for adapters in sets:
        for number, p in enumerate(adapters.requires_grad_(True).parameters()):
            p.data += 0.1 * noise(*p.shape, name=f"p{number}")
    parameters = [p for adapters in sets for p in adapters.parameters()]

    def said() -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        with base.attached(*sets):
            y = layer(leaf)
        return y, *torch.autograd.grad(y.square().sum(), [leaf, *parameters])

    fast = said()
    monkeypatch.setattr(type(layer), "through", nn.Conv3d._conv_forward)
    for ours, stock in zip(fast, said(), strict=True):
        assert stock.abs().max() > 1e-3
        assert torch.allclose(ours, stock, atol=1e-4, rtol=1e-4)


def _output(base: VideoBase, path: str) -> Site:
    layer = base.parts.denoiser.get_submodule(path)
    width, shape = layer.measure("out")
    return Site(path, "out", "time", width, shape)


@pytest.mark.parametrize("form", ["bottleneck", "linear bottleneck", "linear", "nonlinear"])
@pytest.mark.parametrize("count", [1, 2])
def test_condition_enters_behind_the_first_layer(unet3d: VideoBase, form: str, count: int):
    (site,) = unet3d.sites("time", ("attn1",))[:1]
    adapters = AdapterSet(Bottleneck(condition=24, form=form), [site]).requires_grad_(True)
    module = adapters.grafts[site].adapter
    for number, p in enumerate(adapters.parameters()):
        p.data = 0.3 * noise(*p.shape, name=f"p{number}")
    x, e, strength = noise(6, 5, site.width), noise(count, 1, 24, name="e"), torch.tensor(0.7).view(1, 1, 1)

    def formula() -> Tensor:
        y = x + (strength * module.condition(e)).repeat_interleave(6 // count, dim=0)
        if "bottleneck" not in form:
            return F.gelu(module.up(y)) if form == "nonlinear" else module.up(y)
        y = module.down(y)
        return module.up(F.gelu(y) if form == "bottleneck" else y)

    ours, theirs = module(x, Condition(e, strength)), formula()
    assert torch.allclose(ours, theirs, atol=1e-4)
    gradients = [torch.autograd.grad(y.square().sum(), adapters.parameters()) for y in (ours, theirs)]
    for fast, slow in zip(*gradients, strict=True):
        assert torch.allclose(fast, slow, atol=1e-3, rtol=1e-4)


def test_nothing_before_the_first_site_is_differentiated(unet3d: VideoBase):
    """Nor any frozen weight: what is kept for the backward pass begins where something is learned."""
    base = unet3d
    sites = [site for site in base.linears("space", ["attn2.to_k"]) if site.path.startswith("up_blocks.1.")]
    adapters = AdapterSet(LoRA(rank=2), sites[-1:]).requires_grad_(True)
    last = base.parts.denoiser.up_blocks[-1].resnets[0]
    flags: dict[str, bool] = {}
    hooks: list[tuple[nn.Module, str]] = [(last, "before"), (base.parts.denoiser.conv_out, "after")]
    handles = [
        module.register_forward_hook(lambda _, args, out, name=name: flags.update({name: out.requires_grad}))
        for module, name in hooks
    ]
    with base.attached(adapters):
        base.predict(noise(1, 4, 2, 4, 4), torch.tensor([40]), noise(1, 77, 32)).sum().backward()
    for handle in handles:
        handle.remove()
    assert flags == {"before": False, "after": True}


@pytest.mark.parametrize("steps", [1, 20])
def test_fused_updates_are_the_plain_ones(steps: int):
    def learned(fused: bool) -> list[Tensor]:
        parameters = [nn.Parameter(noise(5, 3, name="a")), nn.Parameter(noise(7, name="b"))]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, fused=fused)
        for step in range(steps):
            for number, p in enumerate(parameters):
                p.grad = noise(*p.shape, name=f"g{step}/{number}")
            optimizer.step()
        return parameters

    for fused, single in zip(learned(True), learned(False), strict=True):
        assert torch.allclose(fused, single, atol=1e-6)


@pytest.mark.parametrize("coder", ["decode", "encode_video"])
def test_autoencoding_in_slices_is_autoencoding(unet3d: VideoBase, coder: str):
    """More frames than a slice has, against each by itself."""
    shape = (1, 4, 11, 4, 4) if coder == "decode" else (1, 3, 11, 16, 16)
    run: Callable[[Tensor], Tensor] = getattr(unet3d, coder)
    video = noise(*shape).clamp(-1, 1)
    whole, alone = run(video), [run(frame) for frame in video.split(1, dim=2)]
    if coder == "encode_video":
        whole, alone = whole[0], [mean for mean, _ in alone]
    assert torch.allclose(whole, torch.cat(alone, dim=2), atol=1e-5)


def _ignore(progress: Progress) -> None:
    pass


@pytest.mark.parametrize("frames", [1, 3])
def test_text_becomes_keys_and_values_once_a_run_of_the_sampler(
    base: VideoBase, frames: int, monkeypatch: pytest.MonkeyPatch
):
    config = SampleConfig(frames=frames, steps=3, guidance=2.0)

    def video() -> Tensor:
        return sample.generate(base, "a dog", Composition(), config, seed=0)

    with watched(layers(base, "space", "attn2.to_[kv]")) as shapes:
        ours = video()
    assert len(shapes) == len(layers(base, "space", "attn2.to_[kv]"))
    attending = base.attending
    monkeypatch.setattr(base, "attending", lambda control, kept: attending(control))
    assert torch.allclose(ours, video(), atol=1e-4)


def test_keys_that_are_learned_are_computed_in_every_step(unet3d: VideoBase):
    """Their weight may change with the step."""
    sites = unet3d.linears("space", ["attn2.to_k"])
    adapters = AdapterSet(LoRA(rank=2), sites[:1])
    config = SampleConfig(frames=2, steps=3)
    text, start = unet3d.encode_text(["", "a dog"]), noise(1, 4, 2, 4, 4)
    work = sample.denoise(unet3d, start, lambda step, x: text, config.filled(unet3d.defaults))
    with unet3d.attached(adapters), watched(layers(unet3d, "space", "attn2.to_k")) as shapes:
        driven(work, _ignore)
    assert len(shapes) == config.steps + len(sites) - 1


def test_another_text_is_heard(unet3d: VideoBase):
    """A text that changes on the way, as in null-text inversion, changes the video from there on."""
    texts = [unet3d.encode_text(["", words]).detach() for words in ("a dog", "a cat")]
    config = SampleConfig(frames=2, steps=4).filled(unet3d.defaults)

    def video(*numbers: int) -> Tensor:
        work = sample.denoise(unet3d, noise(1, 4, 2, 4, 4), lambda step, x: texts[numbers[step]], config)
        return driven(work, _ignore)

    assert not torch.allclose(video(0, 0, 1, 1), video(0, 0, 0, 0), atol=1e-6)
    assert not torch.allclose(video(0, 0, 1, 1), video(1, 1, 1, 1), atol=1e-6)


def test_equal_prompts_pass_the_text_encoder_once(unet3d: VideoBase):
    prompts = ["a dog", "a cat", "a dog", "a dog"]
    with watched([unet3d.parts.text_encoder.get_input_embeddings()]) as shapes:
        states = unet3d.encode_text(prompts)
    assert [shape[0] for shape in shapes] == [2]
    assert unet3d.encode_text(prompts[2:]).stride(0) == 0  # one row in memory, which `sharing` knows by that
    for state, prompt in zip(states, prompts, strict=True):
        assert torch.allclose(state, unet3d.encode_text([prompt])[0], atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("compile", ["blocks", "graphs"])
def test_learning_compiled_is_learning(unet3d: VideoBase, compile: Compile, monkeypatch: pytest.MonkeyPatch):
    """With what torch does before it makes kernels; those take minutes."""

    def traced(module: nn.Module, **options: object) -> None:
        calls.append(options["mode"])
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager", dynamic=False)

    base, calls = unet3d, list[object]()
    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    adapters = AdapterSet(LoRA(rank=2), base.linears("space", ["attn2.to_q"])).requires_grad_(True)
    x, t, text = noise(1, 4, 2, 4, 4), torch.tensor([500]), noise(1, 77, 32, name="text")

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(base.predict(x, t, text).square().mean(), adapters.parameters()))

    with base.attached(adapters):
        plain = gradients()
        with base.learning(compile=compile):
            made = gradients()
    assert max(gradient.abs().max() for gradient in plain) > 1e-5
    assert len(calls) == (len(base._places.blocks) if compile == "blocks" else 1)
    assert set(calls) == {"reduce-overhead" if compile == "graphs" else None}
    for ours, theirs in zip(made, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert all(module._compiled_call_impl is None for module in base.parts.denoiser.modules())
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_who_has_no_compiler_is_told(unet3d: VideoBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, text = noise(1, 4, 2, 4, 4), noise(1, 77, 32, name="text")
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(
            Unsupported, match=r"torch cannot compile here .*no-such-compiler.*--restart --set train\.compile=none"
        ),
        unet3d.learning(compile="blocks"),
    ):
        unet3d.predict(x, torch.tensor([500]), text)
    assert all(module._compiled_call_impl is None for module in unet3d.parts.denoiser.modules())
    torch._dynamo.reset()
