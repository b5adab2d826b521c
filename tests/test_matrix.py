"""Families x methods x properties, on tiny random bases. A new method or base joins by existing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from dreamvideo import bases, methods
from dreamvideo.adapters import file
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.layers import LAYERS, Embedding
from dreamvideo.adapters.ports import BasicTransformerBlock, ResnetBlock2D, close_ports
from dreamvideo.adapters.words import Word
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept
from dreamvideo.data import Data, DataConfig
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import Unsupported
from dreamvideo.methods.method import Method, Stage

METHODS = sorted(methods.available())

# Families without layers over time.
WITHOUT_TIME = ("inflated",)

# (family, method) -> why the one does not apply to the other, as its user is told. Said here, so that a method that
# refuses a base by mistake is not passed over.
DOES_NOT_APPLY = {
    ("inflated", "customize-a-video"): "has no time layers",
    ("inflated", "dreamvideo-motion"): "has no time layers with a port attn1 or attn2 or ff",
    ("inflated", "finetune-motion"): "has no time parameters",
    ("inflated", "lora-motion"): "has no time layers",
    ("inflated", "motion-director"): "has no time layers",
    **{
        (family, "animatediff-motion"): r"has no time parameters named \*\.motion_modules\.\*"
        for family in bases.available().keys() - {"animatediff"}
    },
    **{
        (family, "tune-a-video"): "has no time layers with a port time"
        for family in bases.available().keys() - {"inflated"}
    },
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return methods.find(request.param)()


@pytest.fixture
def concept(method: Method, subject_concept: Concept, motion_concept: Concept) -> Concept:
    return subject_concept if method.learns == "image" else motion_concept


@pytest.fixture
def stages(method: Method, base: VideoBase, concept: Concept) -> list[Stage]:
    if why := DOES_NOT_APPLY.get((base.family, method.name)):
        with pytest.raises(Unsupported, match=why) as caught:
            list(method.stages(base, concept, seed=0))
        assert "\n" not in str(caught.value)
        pytest.skip(f"{method.name} does not apply: base {base.name} {why}")
    return list(method.stages(base, concept, seed=0))


def kept(stages: list[Stage]) -> dict[str, AdapterSet]:
    """What a method's file holds."""
    return {name: a for stage in stages for name, a in stage.learn.items() if name not in stage.aside}


def every_set(stages: list[Stage]) -> list[AdapterSet]:
    return [adapters for stage in stages for adapters in stage.learn.values()]


def disturbed(stages: list[Stage]) -> list[AdapterSet]:
    """All sets of a method, moved away from their transparent start."""
    with torch.no_grad():
        for number, adapters in enumerate(every_set(stages)):
            for p in adapters.parameters():
                p += 0.2 * torch.randn(p.shape, generator=generator("disturbed", number))
    return every_set(stages)


def output(base: VideoBase, *, frames: int = 4, prompt: str = "a dog", guided: bool = True) -> Tensor:
    """What the base says to fixed inputs, two samples with different image vectors."""
    x = torch.randn(2, 4, frames, 4, 4, generator=generator("x"))
    e = torch.randn(2, 1, base.image_width, generator=generator("e"))
    with base.given(appearance=e if guided else None):
        return base.predict(x, torch.tensor([40, 800]), base.encode_text([prompt, ""]))


def batch_of(method: Method, base: VideoBase, concept: Concept, stage: Stage, *, live: bool | None = None):
    # Some of many views, of whole pictures: on so few latents nothing would be left of a smaller one.
    views = [view for view in stage.views if view.scale == 1][:2]
    data = Data(base, concept, DataConfig(), prompt=method.prompt, wants=stage.wants, views=views)
    data.encode_text()
    draw = Draw(base.process, generator("batch"))
    numbers = [number % len(data) for number in range(2)]
    return data.batch(numbers, draw, live_text=stage.live_text if live is None else live, views=views)


def loss_of(method: Method, base: VideoBase, sets: dict[str, AdapterSet], batch, *, seed: int = 0) -> float:
    """One backward pass over every term, as in the loop; returns the loss."""
    total = 0.0
    for _, term in method.terms(base, sets, batch, Draw(base.process, generator("loss", seed))):
        term.backward()
        total += term.item()
    return total


@contextmanager
def everything_attached(base: VideoBase, stages: list[Stage]) -> Iterator[None]:
    with base.attached(*every_set(stages)):
        yield


def test_fresh_sets_are_transparent(base: VideoBase, stages: list[Stage]):
    before = output(base)
    with everything_attached(base, stages):
        assert torch.equal(output(base), before)


def test_disturbed_sets_are_not(base: VideoBase, stages: list[Stage], concept: Concept):
    """Without this the tests of transparency could not fail."""
    words = [a for a in every_set(stages) if isinstance(a.kind, Word)]
    prompt = f"a <{concept.name}>" if words else "a dog"
    with base.attached(*words):
        before = output(base, prompt=prompt)
    with base.attached(*disturbed(stages)):
        assert not torch.allclose(output(base, prompt=prompt), before, atol=1e-3)


def test_opened_ports_compute_what_stock_blocks_do(base: VideoBase):
    before, keys = output(base), set(base.parts.denoiser.state_dict())
    text = base.encode_text(["a dog", ""])
    # One frame, which every denoiser takes: a stock image model takes no video.
    image = base.parts.denoiser if base.family == "inflated" else None
    x, t = torch.randn(2, 4, 4, 4, generator=generator("image")), torch.tensor([40, 800])
    of_image = None if image is None else image(x, t, text, return_dict=False)[0]
    close_ports(base.parts.denoiser, (BasicTransformerBlock, ResnetBlock2D, *LAYERS, *base.time_modules))
    close_ports(base.parts.text_encoder, (Embedding,))
    modules = [*base.parts.denoiser.modules(), *base.parts.text_encoder.modules()]
    assert not [m for m in modules if type(m).__module__.startswith("dreamvideo")]
    assert set(base.parts.denoiser.state_dict()) == keys
    # To rounding: ports leave out what cannot change the result, in another order of sums.
    if image is None:
        assert torch.allclose(output(base), before, atol=1e-5)
    else:
        assert torch.allclose(image(x, t, text, return_dict=False)[0], of_image, atol=1e-5)
    assert torch.equal(base.encode_text(["a dog", ""]), text)


def test_only_the_learned_sets_receive_gradients(
    method: Method, base: VideoBase, concept: Concept, stages: list[Stage]
):
    for stage in stages:
        for adapters in every_set(stages):
            for p in adapters.requires_grad_(False).parameters():
                p.grad = None
        for adapters in stage.learn.values():
            adapters.requires_grad_(True)
        with base.attached(*stage.hold.values(), *stage.learn.values()):
            loss_of(method, base, dict(stage.learn), batch_of(method, base, concept, stage))
        parts = base.parts
        assert all(p.grad is None for m in (parts.denoiser, parts.vae, parts.text_encoder) for p in m.parameters())
        for held in stage.hold.values():
            assert all(p.grad is None for p in held.parameters())
        for name, p in [pair for a in stage.learn.values() for pair in a.named_parameters()]:
            assert p.grad is not None, name
            # What lies before a zero-initialised layer has a zero gradient at first; that layer itself does not.
            if name.endswith(("up.weight", "up.bias", "up", "delta", "vectors")):
                assert p.grad.abs().max() > 0, name


def test_thirty_steps_lower_the_loss(method: Method, base: VideoBase, concept: Concept, stages: list[Stage]):
    for stage in stages:
        parameters = [p for a in stage.learn.values() for p in a.requires_grad_(True).parameters()]
        with base.attached(*stage.hold.values(), *stage.learn.values()):
            batch = batch_of(method, base, concept, stage, live=False)
            optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0)
            losses = []
            for _ in range(30):
                if stage.live_text:
                    batch = batch_of(method, base, concept, stage)
                losses.append(loss_of(method, base, dict(stage.learn), batch, seed=7))
                optimizer.step()
                optimizer.zero_grad()
            for a in stage.learn.values():
                a.requires_grad_(False)
        assert losses[-1] < 0.98 * losses[0], (stage.name, losses[0], losses[-1])


def test_saved_and_loaded_on_a_fresh_base_it_says_the_same(
    method: Method, base: VideoBase, concept: Concept, stages: list[Stage], tmp_path
):
    disturbed(stages)
    sets = kept(stages).values()
    prompt = f"a <{concept.name}>" if any(isinstance(a.kind, Word) for a in sets) else "a dog"
    with base.attached(*sets):
        before = output(base, prompt=prompt)
    meta = file.Meta(name=concept.name, role=method.role, family=base.family, base=base.name,
                     method=method.name, created_by="test")  # fmt: skip
    for name in ("one", "two"):
        file.save(tmp_path / f"{name}.safetensors", file.ConceptFile(meta, kept(stages)))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    fresh = type(base).tiny(0)
    loaded = file.load(tmp_path / "one.safetensors")
    assert loaded.meta == meta
    with fresh.attached(*loaded.sets.values()):
        assert torch.equal(output(fresh, prompt=prompt), before)


def test_detached_it_leaves_no_trace(base: VideoBase, stages: list[Stage]):
    before, keys = output(base), set(base.parts.denoiser.state_dict())
    with base.attached(*disturbed(stages)):
        pass
    assert torch.equal(output(base), before)
    assert set(base.parts.denoiser.state_dict()) == keys


def test_at_scale_zero_it_is_the_base(base: VideoBase, stages: list[Stage]):
    before = output(base)
    sets = disturbed(stages)
    with base.attached(*sets):
        for adapters in sets:
            adapters.scale(0.0)
        assert torch.equal(output(base), before)


def test_the_order_of_sets_means_nothing(base: VideoBase, method: Method, concept: Concept, stages: list[Stage]):
    groups = []
    for seed in (1, 2):
        for adapters in every_set(list(method.stages(base, concept, seed=seed))):
            if isinstance(adapters.kind, Word):
                continue  # Two words of one name are a mistake, not an order.
            with torch.no_grad():
                for p in adapters.parameters():
                    p += 0.2 * torch.randn(p.shape, generator=generator(seed))
            groups.append(adapters)
    with base.attached(*groups):
        forwards = output(base)
    with base.attached(*reversed(groups)):
        assert torch.allclose(output(base), forwards, atol=1e-5)


def test_rematerialised_gradients_equal_plain_ones(
    method: Method, base: VideoBase, concept: Concept, stages: list[Stage]
):
    sets, stage = disturbed(stages), stages[-1]
    for adapters in sets:
        adapters.requires_grad_(True)
    gradients = {}
    for wanted in (False, True):
        torch.manual_seed(0)  # for dropout
        with base.attached(*sets), base.learning(rematerialise=wanted):
            batch = batch_of(method, base, concept, stage, live=True)
            for _, term in method.terms(base, dict(stage.learn), batch, Draw(base.process, generator("r"))):
                # Another forward before the backward pass, under another condition, must not leak into it.
                with torch.no_grad():
                    output(base)
                term.backward()
        gradients[wanted] = [p.grad.clone() for a in stage.learn.values() for p in a.parameters()]
        for adapters in sets:
            for p in adapters.parameters():
                p.grad = None
    for plain, again in zip(gradients[False], gradients[True], strict=True):
        assert torch.allclose(plain, again, atol=1e-6, rtol=1e-4)


def test_rematerialisation_recomputes(base: VideoBase, stages: list[Stage]):
    """The switch does something: blocks run a second time in the backward pass."""
    runs = []
    sets = [a.requires_grad_(True) for a in disturbed(stages)]
    last = [m for m in base.parts.denoiser.modules() if isinstance(m, BasicTransformerBlock)][-1]
    handle = last.norm1.register_forward_hook(lambda *_: runs.append(1))
    words = [a for a in sets if isinstance(a.kind, Word)]
    prompt = f"a <{words[0].kind.name}>" if words else "a dog"
    with base.attached(*sets), base.learning(rematerialise=True):
        output(base, prompt=prompt).sum().backward()
    handle.remove()
    assert len(runs) == 2


def test_it_compiles_whole_and_once(base: VideoBase, stages: list[Stage]):
    """fullgraph, and no further graph for another condition, strength or weight; rematerialised, the harder case."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    sets = [a.requires_grad_(True) for a in disturbed(stages)]
    # A word alone is learned through the text, which then requires a gradient.
    text = torch.randn(2, 77, 32, requires_grad=True)
    predict = torch.compile(base.predict, fullgraph=True, backend=counter)
    with base.attached(*sets), base.learning(rematerialise=True):
        for number in range(3):
            for adapters in sets:
                adapters.scale(0.3 * number)
            with base.given(appearance=torch.randn(2, 1, base.image_width), strength=0.5 + number):
                predict(torch.randn(2, 4, 4, 4, 4), torch.tensor([3, 500]), text).sum().backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_the_same_seed_gives_the_same_weights(method: Method, base: VideoBase, concept: Concept, stages: list[Stage]):
    def weights(seed: int, *, words: bool = True) -> list[Tensor]:
        sets = every_set(list(method.stages(base, concept, seed=seed)))
        return [p for a in sets for p in a.parameters() if words or not isinstance(a.kind, Word)]

    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))
    if any(p.any() for p in weights(3, words=False)):  # a word starts as its class, a full-rank delta as zero
        assert not all(torch.equal(a, b) for a, b in zip(weights(3), weights(4), strict=True))


def test_the_stock_pipeline_runs_with_what_is_attached(base: VideoBase, stages: list[Stage], concept: Concept):
    sets = disturbed(stages)

    def latents() -> Tensor:
        words = any(isinstance(a.kind, Word) for a in base._attached)
        text = base.encode_text([f"a <{concept.name}>" if words else "a dog", ""])
        e = torch.randn(2, 1, base.image_width, generator=generator("e"))
        pipe = base.pipeline()
        pipe.set_progress_bar_config(disable=True)
        with base.given(appearance=e):
            return pipe(
                prompt_embeds=text[:1], negative_prompt_embeds=text[1:], num_frames=2, height=16, width=16,
                num_inference_steps=2, output_type="latent", latents=torch.ones(1, 4, 2, 4, 4), return_dict=False,
            )[0]  # fmt: skip

    before = latents()
    with base.attached(*sets):
        assert not torch.allclose(latents(), before, atol=1e-3)
    assert torch.equal(latents(), before)


def test_one_frame_can_bypass_time(base: VideoBase):
    x, t, text = torch.randn(1, 4, 1, 4, 4), torch.tensor([9]), base.encode_text(["a dog"])
    full = base.predict(x, t, text)
    time = base.sites("time", ("attn2",)) if base.family not in WITHOUT_TIME else ()
    calls = []
    handles = [
        m.register_forward_hook(lambda *_: calls.append(1))
        for m in base.parts.denoiser.modules()
        if isinstance(m, BasicTransformerBlock)
    ]
    with base.given(bypass_time=True):
        assert torch.allclose(base.predict(x, t, text), full, atol=1e-4) == (not time)
    spatial = len(base.sites("space", ("attn2",)))
    assert len(calls) == spatial
    with base.given(bypass_time=True):
        base.predict(x.expand(-1, -1, 3, -1, -1), t, text)
    assert len(calls) == spatial + spatial + len(time)
    for handle in handles:
        handle.remove()


def test_every_base_is_found_by_its_tiny_name():
    for family in bases.available().values():
        assert type(bases.load(family.tiny_name)) is family
