"""Bases around an image model: AnimateDiff put together from two folders, Stable Diffusion inflated over time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from dreamvideo import api, bases, methods
from dreamvideo.adapters import file
from dreamvideo.adapters.graft import AdapterSet, Site
from dreamvideo.adapters.temporal_attention import TemporalAttention
from dreamvideo.adapters.weight import Weight
from dreamvideo.bases.base import Parts, VideoBase
from dreamvideo.concept import Concept
from dreamvideo.diffusion import generator
from dreamvideo.errors import BadFile, BadInput, MissingWeights, Unsupported
from dreamvideo.sample import Composition, SampleConfig, generate

FRAMES = 3


@pytest.fixture
def inflated() -> VideoBase:
    return bases.load("tiny-inflated")


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Stable Diffusion's kind, its scheduler's config as that is published: for another class."""
    folder = tmp_path_factory.mktemp("models") / "sd"
    bases.load("tiny-inflated").save(folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(
        '{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", '
        '"num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, '
        '"trained_betas": null, "clip_sample": false}'
    )
    return folder


def motion_adapter(folder: Path, *, silent: bool = False, **changes) -> Path:
    """A folder with random motion modules for the tiny image model; silent ones add nothing."""
    options = {
        "block_out_channels": (32, 64),
        "motion_layers_per_block": 1,
        "motion_num_attention_heads": 4,
        "motion_norm_num_groups": 8,
        "motion_max_seq_length": 6,
    }
    torch.manual_seed(1)
    adapter = MotionAdapter(**options | changes)
    for name, parameter in adapter.named_parameters():
        if silent and ".proj_out." in name:
            nn.init.zeros_(parameter)
    adapter.save_pretrained(folder)
    return folder


def inputs(base: VideoBase, *, frames: int = FRAMES, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, 4, frames, 4, 4, generator=generator("x"))
    return x, torch.tensor([40, 800][:batch]), base.encode_text(["a dog", ""][:batch])


@torch.no_grad()
def say(base: VideoBase, *, frames: int = FRAMES, change: Callable[[Tensor], None] | None = None) -> Tensor:
    """What the base says to fixed inputs; `change` edits them in place."""
    x, t, text = inputs(base, frames=frames)
    if change is not None:
        change(x)
    return base.predict(x, t, text)


def changed_frames(base: VideoBase, frame: int) -> list[bool]:
    """Which frames of the output notice that one frame of the input is another."""

    def change(x: Tensor) -> None:
        x[:, :, frame] += 1

    return [bool(far > 1e-4) for far in (say(base) - say(base, change=change)).abs().amax(dim=(0, 1, 3, 4))]


def attention(base: VideoBase, *, seed: int = 0, moved: bool = True) -> AdapterSet:
    adapters = AdapterSet(TemporalAttention(heads=4), base.sites("time", ("time",)), seed=seed)
    if moved:
        with torch.no_grad():
            for p in adapters.parameters():
                p += 0.3 * torch.randn(p.shape, generator=generator("moved", seed))
    return adapters


# -- AnimateDiff from two folders -------------------------------------------------------------------------------------


def test_animatediff_is_put_together_from_two_folders(image_model: Path, tmp_path: Path):
    motion = motion_adapter(tmp_path / "motion")
    base = bases.load(f"{image_model}+{motion}")
    assert (base.family, base.name) == ("animatediff", "sd+motion")
    stock = UNetMotionModel.from_unet2d(
        UNet2DConditionModel.from_pretrained(image_model, subfolder="unet"), MotionAdapter.from_pretrained(motion)
    )
    x, t, text = inputs(base)
    with torch.no_grad():
        theirs = stock.eval()(x, t, text.repeat_interleave(FRAMES, dim=0)).sample
    assert torch.equal(say(base), theirs)
    again = bases.load(base.origin.reference)
    assert torch.equal(say(again), theirs)
    base.save(tmp_path / "merged")
    merged = bases.load(str(tmp_path / "merged"))
    assert merged.family == "animatediff"
    assert torch.allclose(say(merged), theirs, atol=1e-6)
    assert torch.equal(merged.process.abar, base.process.abar)


def test_silent_motion_modules_leave_the_image_model(image_model: Path, tmp_path: Path):
    """Two families, one model: AnimateDiff without motion is Stable Diffusion inflated."""
    silent = bases.load(f"{image_model}+{motion_adapter(tmp_path / 'motion', silent=True)}")
    assert torch.allclose(say(silent), say(bases.load(str(image_model))), atol=1e-5)
    loud = bases.load(f"{image_model}+{motion_adapter(tmp_path / 'loud')}")
    assert not torch.allclose(say(loud), say(silent), atol=1e-3)


def test_a_plus_may_be_part_of_a_name(image_model: Path, tmp_path: Path):
    (tmp_path / "a+b").symlink_to(image_model)
    assert bases.load(str(tmp_path / "a+b")).family == "inflated"
    motion = motion_adapter(tmp_path / "c+d")
    assert bases.load(f"{tmp_path / 'a+b'}+{motion}").family == "animatediff"


def test_motion_modules_bring_their_noise(image_model: Path, tmp_path: Path):
    """Linear in beta, whatever the image model was trained with, unless the addition says so itself."""
    motion = motion_adapter(tmp_path / "motion")
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    abar = bases.load(f"{image_model}+{motion}").process.abar
    assert torch.allclose(abar.double(), (1 - betas).cumprod(0), atol=1e-5)
    assert not torch.allclose(abar, bases.load(str(image_model)).process.abar, atol=1e-2)
    own = DDIMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    own.save_pretrained(motion / "scheduler")
    assert torch.equal(bases.load(f"{image_model}+{motion}").process.abar, own.alphas_cumprod)


def test_the_position_table_bounds_the_frames(image_model: Path, tmp_path: Path):
    base = bases.load(f"{image_model}+{motion_adapter(tmp_path / 'motion')}")
    assert base.defaults.frames == 6
    assert base.latent_shape(6, 16, 16) == (4, 6, 4, 4)
    with pytest.raises(Unsupported, match=r"--frames 7: base sd\+motion has 6 frame positions"):
        base.latent_shape(7, 16, 16)
    # The table itself has so many rows, not the config alone.
    tables = [buffer for name, buffer in base.parts.denoiser.named_buffers() if name.endswith("pos_embed.pe")]
    assert {table.shape[1] for table in tables} == {6}
    assert say(base, frames=6).isfinite().all()


def test_clips_of_more_frames_than_positions_are_refused(image_model: Path, turn: Path, tmp_path: Path):
    """The comparison's 32 frames, on modules of the first version."""
    base = bases.load(f"{image_model}+{motion_adapter(tmp_path / 'v1', motion_max_seq_length=24)}")
    about = {"method": "animatediff-motion", "caption": "a car", "out": tmp_path / "run"}
    with pytest.raises(Unsupported, match=r"32: base sd\+v1 has 24 frame positions") as caught:
        api.learn(base, turn, settings=[{"data": {"frames": 32}}], **about)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (32, 32)}, r"widths \[32, 32\]"),
        ({"block_out_channels": (32, 64, 64)}, "number of blocks"),
        ({"motion_norm_num_groups": 4}, "in 4 groups"),
    ],
)
def test_modules_for_another_image_model_are_refused(changes, message: str, image_model: Path, tmp_path: Path):
    motion = motion_adapter(tmp_path / "motion", **changes)
    with pytest.raises(BadInput, match=message) as caught:
        bases.load(f"{image_model}+{motion}")
    assert "\n" not in str(caught.value)
    assert str(motion) in str(caught.value)


def test_what_does_not_belong_together_is_said_in_one_line(
    image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    motion = motion_adapter(tmp_path / "motion")
    bases.load("tiny-animatediff").save(tmp_path / "merged")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for reference, error, message in (
        (f"{tmp_path / 'merged'}+{motion}", BadInput, "is a UNetMotionModel"),
        (f"{image_model}+{image_model}", BadInput, "in .* lies nothing"),
        (f"{image_model}+{image_model / 'vae'}", Unsupported, "AutoencoderKL"),
        (f"{motion}+{image_model}", BadInput, r"no unet/config\.json"),
        (str(motion), BadInput, f"half of a base; write MODEL.{motion}"),
        (f"{image_model}+no-such", BadInput, "no-such: neither"),
        (f"{image_model}+nobody/no-such-model", MissingWeights, "nobody/no-such-model"),
        ("one+two+three", BadInput, "one . between"),
    ):
        with pytest.raises(error, match=message) as caught:
            bases.load(reference)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("middle", "motion"), [(True, 453_209_280), (False, 417_137_600)], ids=["v2", "v1"])
def test_at_full_size_its_parts_have_the_papers_parameters(
    middle: bool, motion: int, subject_concept: Concept, motion_concept: Concept
):
    """Of the whole, 1,276,658,564 with version 1 of the modules, AnimateDiff's two halves learn one part each."""
    tiny = bases.load("tiny-animatediff")
    with torch.device("meta"):
        denoiser = UNetMotionModel(sample_size=64, cross_attention_dim=768, use_motion_mid_block=middle)
        base = type(tiny)(tiny.origin, parts=Parts(**vars(tiny.parts) | {"denoiser": denoiser}), defaults=tiny.defaults)
        (subject,) = methods.find("animatediff-subject")().stages(base, subject_concept, seed=0)
        (moved,) = methods.find("animatediff-motion")().stages(base, motion_concept, seed=0)
    assert subject.learn["subject"].count() == 859_520_964
    assert moved.learn["motion"].count() == motion
    whole = {453_209_280: 1_312_730_244, 417_137_600: 1_276_658_564}[motion]
    assert sum(p.numel() for p in denoiser.parameters()) == whole


# -- Stable Diffusion, inflated ---------------------------------------------------------------------------------------


def test_a_video_is_said_frame_by_frame(inflated: VideoBase, image_model: Path):
    stock = UNet2DConditionModel.from_pretrained(image_model, subfolder="unet").eval()
    x, t, text = inputs(inflated)
    with torch.no_grad():
        frames = [stock(x[:, :, frame], t, text).sample for frame in range(FRAMES)]
    assert torch.allclose(say(inflated), torch.stack(frames, dim=2), atol=1e-5)
    assert changed_frames(inflated, 1) == [False, True, False]


def test_a_published_scheduler_config_is_read(image_model: Path):
    base = bases.load(str(image_model))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(base.process.abar.double(), (1 - betas).cumprod(0), atol=1e-5)


def test_stock_diffusers_reads_the_image_model_that_is_saved(inflated: VideoBase, tmp_path: Path):
    inflated.save(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    x, t, text = inputs(inflated, frames=1)
    with torch.no_grad():
        assert torch.allclose(pipe.unet(x[:, :, 0], t, text).sample, say(inflated, frames=1)[:, :, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"in_channels": 9}, "inpainting"), ({"addition_embed_type": "text", "encoder_hid_dim": None}, "more than text")],
)
def test_image_models_that_want_more_are_refused(change, message: str, inflated: VideoBase, tmp_path: Path):
    inflated.save(tmp_path)
    options = {name: value for name, value in inflated.parts.denoiser.config.items() if not name.startswith("_")}
    UNet2DConditionModel(**options | change).save_pretrained(tmp_path / "unet")
    with pytest.raises(Unsupported, match=message):
        bases.load(str(tmp_path))


def test_blocks_that_compute_something_else_are_refused(inflated: VideoBase, image_model: Path):
    denoiser = UNet2DConditionModel.from_pretrained(image_model, subfolder="unet")
    next(module for module in denoiser.modules() if isinstance(module, BasicTransformerBlock))._chunk_size = 1
    parts = Parts(**vars(inflated.parts) | {"denoiser": denoiser})
    with pytest.raises(Unsupported, match="feed-forward chunking"):
        type(inflated)(inflated.origin, parts=parts, defaults=inflated.defaults)


class _Reaching:
    """An attention processor that takes keys and values from other frames, written frame by frame."""

    def __init__(self, sources: Callable[[int], list[int]]) -> None:
        self.sources = sources

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None) -> Tensor:
        outputs = []
        for number, x in enumerate(hidden_states):  # (B F, L, width)
            video, frame = divmod(number, FRAMES)
            if encoder_hidden_states is None:
                seen = torch.cat([hidden_states[video * FRAMES + source] for source in self.sources(frame)])
            else:
                seen = encoder_hidden_states[number]
            q, k, v = (
                layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
                for layer, tokens in ((attn.to_q, x), (attn.to_k, seen), (attn.to_v, seen))
            )
            weights = (q @ k.transpose(1, 2) * attn.scale).softmax(dim=-1)
            outputs.append(attn.to_out[0]((weights @ v).transpose(0, 1).flatten(1)))
        return torch.stack(outputs)


@pytest.mark.parametrize(
    ("reach", "sources"),
    [
        ("frame", lambda frame: [frame]),
        ("sparse-causal", lambda frame: [0, max(frame - 1, 0)]),
        ("first", lambda frame: [0]),
    ],
)
def test_self_attention_reaches_the_frames_of_the_papers(reach, sources, inflated: VideoBase, image_model: Path):
    stock = UNet2DConditionModel.from_pretrained(image_model, subfolder="unet").eval()
    stock.set_attn_processor(_Reaching(sources))
    x, t, text = inputs(inflated)
    with torch.no_grad():
        images, steps = x.transpose(1, 2).flatten(0, 1), t.repeat_interleave(FRAMES)
        theirs = stock(images, steps, text.repeat_interleave(FRAMES, dim=0)).sample
    with inflated.reaching(reach):
        ours = say(inflated)
    assert torch.allclose(ours, theirs.unflatten(0, (2, FRAMES)).transpose(1, 2), atol=1e-5)


def test_sparse_causal_attention_looks_at_the_first_and_the_frame_before(inflated: VideoBase):
    with inflated.reaching("sparse-causal"):
        assert changed_frames(inflated, 0) == [True, True, True]
        assert changed_frames(inflated, 2) == [False, False, True]
        one = say(inflated, frames=1)
    assert torch.allclose(one, say(inflated, frames=1), atol=1e-5)  # itself twice is itself


def test_what_is_given_leaves_the_reach_alone(inflated: VideoBase):
    with inflated.reaching("first"):
        wanted = say(inflated)
        with inflated.given():
            assert torch.equal(say(inflated), wanted)
    assert not torch.allclose(say(inflated), wanted, atol=1e-4)


def test_other_families_know_no_such_attention(unet3d: VideoBase):
    with (
        pytest.raises(Unsupported, match="base tiny knows no sparse-causal attention"),
        unet3d.reaching("sparse-causal"),
    ):
        pass
    with pytest.raises(Unsupported, match="base tiny has no time layers with a port time"):
        unet3d.sites("time", ("time",))


# -- attention over time ----------------------------------------------------------------------------------------------


def test_fresh_temporal_attention_changes_nothing(inflated: VideoBase):
    before = say(inflated)
    with inflated.attached(attention(inflated, moved=False)):
        assert torch.equal(say(inflated), before)
    adapters = attention(inflated)
    with inflated.attached(adapters):
        assert not torch.allclose(say(inflated), before, atol=1e-3)
        adapters.scale(0.0)
        assert torch.equal(say(inflated), before)
    assert torch.equal(say(inflated), before)


def test_temporal_attention_is_the_papers_formula():
    adapter = AdapterSet(TemporalAttention(heads=2), [Site("a", "time", "time", 6)], seed=3)
    module = next(iter(adapter.grafts.values())).adapter
    nn.init.normal_(module.to_out.weight, generator=generator("out"))
    x = torch.randn(5, FRAMES, 6, generator=generator("stream"))
    expected = torch.zeros_like(x)
    for pixel, frames in enumerate(x):
        inner = (frames - frames.mean(1, keepdim=True)) / (frames.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        heads = []
        for rows in (slice(0, 3), slice(3, 6)):
            q, k, v = (inner @ layer.weight[rows].T for layer in (module.to_q, module.to_k, module.to_v))
            heads.append((q @ k.T / 3**0.5).softmax(dim=1) @ v)
        expected[pixel] = torch.cat(heads, dim=1) @ module.to_out.weight.T
    assert torch.allclose(module(x, None), expected, atol=1e-5)


def test_temporal_attention_mixes_frames_and_knows_no_order(inflated: VideoBase):
    order = [2, 0, 1]
    with inflated.attached(attention(inflated)):
        assert changed_frames(inflated, 2) == [True, True, True]
        x, t, text = inputs(inflated)
        with torch.no_grad():
            assert torch.allclose(inflated.predict(x[:, :, order], t, text), say(inflated)[:, :, order], atol=1e-5)
            alone = inflated.predict(x[1:], t[1:], text[1:])
        assert torch.allclose(alone, say(inflated)[1:], atol=1e-5)  # no sample sees another


def test_one_frame_bypasses_temporal_attention(inflated: VideoBase):
    plain = {frames: say(inflated, frames=frames) for frames in (1, 2)}
    with inflated.attached(attention(inflated)), inflated.given(bypass_time=True):
        assert torch.equal(say(inflated, frames=1), plain[1])
        assert not torch.allclose(say(inflated, frames=2), plain[2], atol=1e-3)


def test_temporal_attention_is_learned_and_nothing_else(inflated: VideoBase):
    adapters = attention(inflated).requires_grad_(True)
    gradients = []
    for rematerialise in (False, True):
        with inflated.attached(adapters), inflated.learning(rematerialise=rematerialise):
            with inflated.reaching("sparse-causal"):
                loss = inflated.predict(*inputs(inflated)).square().mean()
            say(inflated, frames=2)  # another number of frames, another reach, before the backward pass
            loss.backward()
        gradients.append([p.grad.clone() for p in adapters.parameters()])
        for p in adapters.parameters():
            assert p.grad.abs().max() > 0
            p.grad = None
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, atol=1e-7, rtol=1e-4)
    assert all(p.grad is None for p in inflated.parts.denoiser.parameters())


def test_temporal_attention_is_learned_in_full_precision_on_a_half_precision_base(image_model: Path):
    base = bases.load(str(image_model), dtype="bf16")
    adapters = attention(base).requires_grad_(True)
    with base.attached(adapters), base.autocast():
        said = base.predict(*inputs(base))
        said.float().square().mean().backward()
    assert said.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in adapters.parameters())


def test_temporal_attention_compiles_whole(inflated: VideoBase):
    torch._dynamo.reset()
    x, t, text = inputs(inflated)
    text = text.detach()
    adapters = attention(inflated).requires_grad_(True)
    with inflated.attached(adapters), inflated.reaching("sparse-causal"), inflated.learning(rematerialise=True):
        plain = inflated.predict(x, t, text)
        compiled = torch.compile(inflated.predict, fullgraph=True, backend="aot_eager")(x, t, text)
    assert torch.allclose(plain, compiled, atol=1e-5)
    torch._dynamo.reset()


def test_it_is_saved_loaded_and_sampled_as_it_was_learned(inflated: VideoBase, tmp_path: Path):
    adapters = attention(inflated)
    sampling = file.Sampling(reach="sparse-causal")
    meta = file.Meta(name="turn", role="motion", family="inflated", base="tiny-inflated", method="test",
                     sampling=sampling, created_by="test")  # fmt: skip
    file.save(tmp_path / "turn.safetensors", file.ConceptFile(meta, {"temporal": adapters}))
    loaded = file.load(tmp_path / "turn.safetensors")
    assert loaded.meta.sampling.reach == "sparse-causal"
    config = SampleConfig(frames=FRAMES, height=16, width=16, steps=2, guidance=2.0)
    with inflated.attached(adapters), inflated.reaching("sparse-causal"):
        wanted = say(inflated)
    with inflated.attached(*loaded.sets.values()), inflated.reaching("sparse-causal"):
        assert torch.equal(say(inflated), wanted)
    told = []

    def sampled(concept: file.ConceptFile, **wishes: str) -> Tensor:
        watch = inflated.parts.denoiser.register_forward_hook(lambda *_: told.append(inflated.givens.reach))
        latents = generate(inflated, "a dog", Composition(concepts=[(concept, Weight())], **wishes), config, seed=0)
        watch.remove()
        return latents

    asked = sampled(loaded)
    assert set(told) == {"sparse-causal"}
    assert inflated.givens.reach == "frame"
    silent = file.ConceptFile(file.Meta(**vars(meta) | {"sampling": file.Sampling()}), loaded.sets)
    assert not torch.allclose(sampled(silent), asked, atol=1e-4)
    assert torch.equal(sampled(silent, reach="sparse-causal"), asked)
    other = file.ConceptFile(file.Meta(**vars(meta) | {"sampling": file.Sampling(reach="first")}), {})
    with pytest.raises(BadInput, match="first and sparse-causal attention"):
        generate(inflated, "a dog", Composition(concepts=[(loaded, Weight()), (other, Weight())]), config, seed=0)


def test_the_stock_pipeline_samples_a_video_with_it(inflated: VideoBase):
    pipe = inflated.pipeline()
    pipe.set_progress_bar_config(disable=True)
    text = inflated.encode_text(["a dog", ""])

    def latents(frames: int) -> Tensor:
        return pipe(
            prompt_embeds=text[:1], negative_prompt_embeds=text[1:], height=16, width=16, num_inference_steps=2,
            output_type="latent", latents=torch.ones(1, 4, frames, 4, 4), return_dict=False,
        )[0]  # fmt: skip

    before = latents(2)
    with inflated.attached(attention(inflated)):
        assert not torch.allclose(latents(2), before, atol=1e-3)
    assert torch.equal(latents(2), before)
    assert pipe(prompt_embeds=text[:1], negative_prompt_embeds=text[1:], num_inference_steps=1).images[0].size == (
        16,
        16,
    )


def test_what_it_cannot_stand_on_is_refused(inflated: VideoBase, unet3d: VideoBase):
    with pytest.raises(Unsupported, match="temporal-attention adapters stand on time"):
        AdapterSet(TemporalAttention(), inflated.sites("space", ("ff",)))
    with pytest.raises(Unsupported, match="32 cannot be cut into 5 heads"):
        AdapterSet(TemporalAttention(heads=5), inflated.sites("time", ("time",)))
    adapters = attention(inflated)
    with pytest.raises(BadFile, match="base tiny has no time port"):
        unet3d.attach(adapters)


def test_at_full_size_it_has_the_papers_parameters(inflated: VideoBase, motion_concept: Concept):
    """Tune-A-Video learns 74,354,880: per block 4 C^2 + C of the new attention, and C^2 of each of two to_q."""
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        parts = Parts(**vars(inflated.parts) | {"denoiser": denoiser})
        base = type(inflated)(inflated.origin, parts=parts, defaults=inflated.defaults)
        (stage,) = methods.find("tune-a-video")().stages(base, motion_concept, seed=0)
    assert {name: len(adapters.sites) for name, adapters in stage.learn.items()} == {"motion": 16, "queries": 32}
    assert sum(adapters.count() for adapters in stage.learn.values()) == 74_354_880
