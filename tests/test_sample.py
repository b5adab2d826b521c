"""Sampling: the schedule, guidance, composition, appearance, inversion, against stock code and hand-written loops."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from dreamvideo import api, sample, thrift
from dreamvideo.adapters import file
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.weight import Weight
from dreamvideo.adapters.words import learned_word
from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import generator, offset_noise
from dreamvideo.errors import BadInput
from dreamvideo.sample import Appearance, Composition, Inversion, SampleConfig, Thrift


def concept(base: VideoBase, name: str, sets: dict[str, AdapterSet], *, role: str = "motion") -> file.ConceptFile:
    """A concept whose adapters are random and not transparent."""
    with torch.no_grad():
        for adapters in sets.values():
            for p in adapters.requires_grad_(False).parameters():
                p += 0.3 * torch.randn(p.shape, generator=generator(name))
    meta = file.Meta(name=name, role=role, family=base.family, base=base.name, fingerprint=base.fingerprint,
                     method="test", created_by="test")  # fmt: skip
    return file.ConceptFile(meta, sets)


def identity(base: VideoBase, name: str = "dog") -> file.ConceptFile:
    (site,) = base.sites("text", ("word",))
    sets = {
        "word": learned_word(name, base.token_vectors("dog")[:2], site),
        "identity": AdapterSet(Bottleneck(), base.sites("space", ("attn2",))),
    }
    return concept(base, name, sets, role="subject")


def motion(base: VideoBase, name: str = "turn") -> file.ConceptFile:
    kind = Bottleneck(condition=base.image_width)
    return concept(base, name, {"motion": AdapterSet(kind, base.sites("time", ("attn1", "attn2", "ff")))})


def test_ddim_has_the_papers_schedule(unet3d: VideoBase, monkeypatch: pytest.MonkeyPatch):
    """50 steps are 981, 961, ..., 1, and the last one ends at abar_0, not at 1."""
    seen, alphas = [], []
    predict, step = type(unet3d).predict, DDIMScheduler.step

    def watching(self, x, t, text):
        seen.append(int(t[0]))
        return predict(self, x, t, text)

    def stepping(self, prediction, t, x):
        alphas.append((int(t), float(self.final_alpha_cumprod), self.config.clip_sample))
        return step(self, prediction, t, x)

    monkeypatch.setattr(type(unet3d), "predict", watching)
    monkeypatch.setattr(DDIMScheduler, "step", stepping)
    sample.generate(unet3d, "a dog", Composition(), SampleConfig(steps=50), seed=0)
    assert seen == list(range(981, 0, -20))
    assert alphas[-1] == (1, pytest.approx(unet3d.process.abar[0].item()), False)


def test_it_samples_what_the_official_formulas_say(unet3d: VideoBase):
    """DDIM and guidance, in two passes, written out (official code: abar of step t-20, abar_0 at the end)."""
    base, noise = unet3d, offset_noise((1, 4, 2, 4, 4), 0.1, generator("n"))
    x, abar = noise.clone(), base.process.abar.float()
    text, empty = base.encode_text(["a dog"]), base.encode_text([""])
    with torch.no_grad():
        for t in range(981, 0, -20):
            at = torch.tensor([t])
            conditional, unconditional = base.predict(x, at, text), base.predict(x, at, empty)
            eps = unconditional + 9.0 * (conditional - unconditional)
            clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            before = abar[max(t - 20, 0)]
            x = before.sqrt() * clean + (1 - before).sqrt() * eps
    config = SampleConfig(frames=2, steps=50, guidance=9.0)
    ours = sample.generate(base, "a dog", Composition(), config, seed=0, noise=noise)
    assert torch.allclose(ours, x, atol=1e-3, rtol=1e-3)


def test_it_samples_what_the_stock_pipeline_does(base: VideoBase):
    noise = torch.randn(1, 4, 2, 4, 4, generator=generator("noise"))
    config = SampleConfig(frames=2, steps=20, guidance=9.0)
    ours = sample.generate(base, "a dog, é", Composition(), config, seed=0, noise=noise)
    pipe = base.pipeline()
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        "a dog, é", num_frames=2, height=16, width=16, num_inference_steps=20, guidance_scale=9.0, latents=noise,
        output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    assert (ours - stock).abs().max() < 1e-4
    assert ours.std() > 0.1


def test_both_branches_in_one_batch_are_two_passes(unet3d: VideoBase):
    base, moving = unet3d, motion(unet3d)
    e = torch.randn(1, 1, base.image_width, generator=generator("e"))
    noise = torch.randn(1, 4, 3, 4, 4, generator=generator("noise"))
    composition = Composition(concepts=[(moving, Weight())], appearance=Appearance(vector=e, strength=(0.7, 0.2)))
    config = SampleConfig(frames=3, steps=2, guidance=5.0)
    ours = sample.generate(base, "a dog", composition, config, seed=0, noise=noise)
    scheduler = DDIMScheduler.from_config(base.parts.scheduler.config)
    scheduler.set_timesteps(2)
    x = noise
    with torch.no_grad(), base.attached(*moving.sets.values()):
        for t in scheduler.timesteps:
            with base.given(appearance=e, strength=0.7):
                conditional = base.predict(x, t, base.encode_text(["a dog"]))
            with base.given(appearance=torch.zeros_like(e), strength=0.2):
                unconditional = base.predict(x, t, base.encode_text([""]))
            x = scheduler.step(unconditional + 5.0 * (conditional - unconditional), t, x).prev_sample
    assert torch.allclose(ours, x, atol=1e-4)


@pytest.mark.parametrize("preset", thrift.PRESETS)
def test_a_preset_does_not_change_the_video(base_over_time: VideoBase, preset: str):
    base = base_over_time
    vector = torch.randn(1, 1, base.image_width, generator=generator("e"))
    composition = Composition(
        concepts=[(identity(base), Weight()), (motion(base), Weight())],
        appearance=Appearance(vector=vector, strength=(0.7, 0.2)),
        inversion=Inversion(latents=torch.randn(1, 4, 3, 4, 4, generator=generator("clip")), strength=0.5),
    )
    config = SampleConfig(frames=3, steps=4, guidance=5.0, negative="a cat")

    def made(saving: Thrift) -> torch.Tensor:
        return sample.generate(base, "a <dog>", composition, config, seed=0, thrift=saving)

    assert torch.allclose(made(thrift.PRESETS[preset]), made(Thrift()), atol=1e-4)


def test_branches_apart_are_passes_of_one_video(unet3d: VideoBase, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    predict = type(unet3d).predict

    def watching(self: VideoBase, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        seen.append((len(x), len(text)))
        return predict(self, x, t, text)

    monkeypatch.setattr(type(unet3d), "predict", watching)
    for saving in (Thrift(apart=True), Thrift()):
        sample.generate(unet3d, "a dog", Composition(), SampleConfig(frames=2, steps=1), seed=0, thrift=saving)
    assert seen == [(1, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize("fails", [False, True])
def test_parts_wait_in_main_memory_and_come_back(unet3d: VideoBase, fails: bool, monkeypatch: pytest.MonkeyPatch):
    """What is asked of parts that say they are on another device, and when."""
    moves: list[tuple[str, str]] = []
    others = ("vae", "text_encoder", "image_encoder")
    for name in ("denoiser", *others):
        monkeypatch.setattr(
            getattr(unet3d.parts, name), "to", lambda place, name=name: moves.append((name, str(place)))
        )
    for name in others:
        parameter = SimpleNamespace(device="cuda:0")
        monkeypatch.setattr(getattr(unet3d.parts, name), "parameters", lambda parameter=parameter: iter([parameter]))

    def on_step(step: int, steps: int) -> None:
        moves.append(("step", str(step)))
        if fails:
            raise RuntimeError

    config = SampleConfig(frames=2, steps=1)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        sample.generate(unet3d, "a dog", Composition(), config, seed=0, thrift=Thrift(offload=True), on_step=on_step)
    assert moves == [*((name, "cpu") for name in others), ("step", "1"), *((name, "cuda:0") for name in others)]


def test_a_zero_vector_still_has_a_bias_unless_its_strength_is_zero(unet3d: VideoBase):
    base, moving = unet3d, motion(unet3d)
    noise = torch.randn(1, 4, 2, 4, 4, generator=generator("noise"))

    def made(appearance: Appearance | None) -> torch.Tensor:
        composition = Composition(concepts=[(moving, Weight())], appearance=appearance)
        return sample.generate(base, "a dog", composition, SampleConfig(frames=2, steps=2), seed=0, noise=noise)

    zeros = torch.zeros(1, 1, base.image_width)
    none = made(None)
    assert torch.allclose(made(Appearance(vector=zeros, strength=(0.0, 0.0))), none, atol=1e-5)
    assert not torch.allclose(made(Appearance(vector=zeros, strength=(1.0, 1.0))), none, atol=1e-3)


def test_any_number_of_concepts_takes_part_and_none_stays(unet3d: VideoBase):
    base = unet3d
    config = SampleConfig(frames=2, steps=2)

    def made(*concepts: file.ConceptFile, prompt: str = "a dog") -> torch.Tensor:
        composition = Composition(concepts=[(c, Weight()) for c in concepts])
        return sample.generate(base, prompt, composition, config, seed=5)

    alone, cat, dog, turn = made(), identity(base, "cat"), identity(base, "dog"), motion(base)
    results = [
        alone,
        made(dog, prompt="a <dog>"),
        made(turn),
        made(dog, turn, prompt="a <dog>"),
        made(cat, dog, turn, motion(base, "other"), prompt="a <cat> and a <dog>"),
    ]
    for number, result in enumerate(results):
        assert result.isfinite().all()
        assert not any(torch.allclose(result, other, atol=1e-3) for other in results[:number])
    assert torch.equal(made(), alone)


def test_two_subjects_of_one_name_are_refused_and_nothing_stays(unet3d: VideoBase):
    composition = Composition(concepts=[(identity(unet3d), Weight()), (identity(unet3d), Weight())])
    with pytest.raises(BadInput, match="two subjects are named dog"):
        sample.generate(unet3d, "a <dog>", composition, SampleConfig(steps=1), seed=0)
    assert unet3d._attached == []


def test_weights_follow_their_schedule(unet3d: VideoBase):
    base, moving = unet3d, motion(unet3d)
    config = SampleConfig(frames=2, steps=5)

    def made(weight: str, *concepts: file.ConceptFile) -> torch.Tensor:
        composition = Composition(concepts=[(c, Weight.parse(weight)) for c in concepts])
        return sample.generate(base, "a dog", composition, config, seed=5)

    assert torch.equal(made("0", moving), made("1"))
    assert torch.equal(made("0@0,0@0.5", moving), made("1"))
    scales = []
    scale, moving.sets["motion"].scale = moving.sets["motion"].scale, lambda v: (scales.append(v), scale(v))
    made("0..1", moving)
    made("0.4@0,0.8@0.5", moving)
    assert scales == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.4, 0.4, 0.8, 0.8, 0.8])


def test_inversion_ends_in_the_noise_that_gives_the_clip_back(unet3d: VideoBase):
    """With many steps DDIM inversion and DDIM sampling of the unguided base nearly undo each other."""
    base = unet3d
    latents = 0.5 * torch.randn(1, 4, 2, 4, 4, generator=generator("clip"))
    config = SampleConfig(frames=2, steps=250, guidance=1.0)
    back = [
        sample.generate(base, "", Composition(inversion=Inversion(latents=latents, strength=s)), config, seed=1)
        for s in (1.0, 0.0)
    ]
    assert (back[0] - latents).abs().mean() < 0.25 * (back[1] - latents).abs().mean()


def test_inversion_is_the_official_formula(unet3d: VideoBase):
    base, latents = unet3d, torch.randn(1, 4, 2, 4, 4, generator=generator("clip"))
    abar = torch.cat([base.process.abar, torch.zeros(1).double()])
    x = latents.double()
    with torch.no_grad():
        for t in range(0, 1000, 20):
            eps = base.predict(x.float(), torch.tensor([t]), base.encode_text([""])).double()
            clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            x = abar[t + 20].sqrt() * clean + (1 - abar[t + 20]).sqrt() * eps
    ours = sample.invert(base, latents, base.encode_text([""]), steps=50)
    assert torch.allclose(ours.double(), x, atol=1e-3)
    assert torch.allclose(ours.double(), eps, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_every_sampler_ends_near_the_others(unet3d: VideoBase, sampler: str):
    noise = torch.randn(1, 4, 2, 4, 4, generator=generator("noise"))

    def made(name: str, steps: int) -> torch.Tensor:
        config = SampleConfig(frames=2, steps=steps, guidance=1.0, sampler=name)
        return sample.generate(unet3d, "a dog", Composition(), config, seed=0, noise=noise)

    reference = made("ddim", 250)
    assert (made(sampler, 50) - reference).abs().mean() < 0.1 * reference.abs().mean()


@pytest.mark.parametrize("every", [2, 3])
def test_deep_levels_say_again_what_they_said(base: VideoBase, every: int):
    denoiser, calls = base.parts.denoiser, []
    inner = denoiser.mid_block.resnets[0].register_forward_hook(lambda *_: calls.append("deep"))
    outer = denoiser.down_blocks[0].resnets[0].register_forward_hook(lambda *_: calls.append("first"))

    def made(reuse: int, *, apart: bool = False) -> torch.Tensor:
        calls.clear()
        config, thrift = SampleConfig(frames=2, steps=5, guidance=2.0, reuse=reuse), Thrift(apart=apart)
        return sample.generate(base, "a dog", Composition(), config, seed=0, thrift=thrift)

    exact = made(1)
    assert (calls.count("deep"), calls.count("first")) == (5, 5)
    near = made(every)
    assert (calls.count("deep"), calls.count("first")) == (-(-5 // every), 5)
    assert 0 < (near - exact).abs().mean() < 0.2 * exact.abs().mean()
    assert torch.allclose(made(every, apart=True), near, atol=1e-4)
    inner.remove()
    outer.remove()
    assert torch.equal(made(1), exact)


def test_attention_is_not_watched_while_it_is_reused(unet3d: VideoBase):
    class Watching(sample.Controller):
        def attention(self, step: int, port: str, queries: int) -> None:
            return None

        def latents(self, step: int, x: torch.Tensor) -> torch.Tensor:
            return x

    config = SampleConfig(frames=2, steps=2, reuse=2)
    with pytest.raises(BadInput, match="--reuse 2"):
        sample.generate(unet3d, "a dog", Composition(), config, seed=0, controller=Watching())


def test_seeds_make_the_noise_and_the_offset_is_in_it(unet3d: VideoBase):
    config = SampleConfig(frames=2, steps=1)

    def made(seed: int, offset: float = 0.0) -> torch.Tensor:
        return sample.generate(unet3d, "a dog", Composition(noise_offset=offset), config, seed=seed)

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    assert not torch.equal(made(1), made(1, 0.1))


def test_a_video_and_its_json_give_the_same_frames_again(unet3d: VideoBase, dog, tmp_path):
    subject, moving = identity(unet3d), motion(unet3d)
    for name, made in (("dog", subject), ("turn", moving)):
        file.save(tmp_path / f"{name}.safetensors", made)
    video = api.generate(
        unet3d,
        "a * turning",
        concepts=[tmp_path / "dog.safetensors", tmp_path / "turn.safetensors"],
        weights=["0.5..1", None],
        appearance=dog / "0.png",
        appearance_strength=(0.8, 0.1),
        seed=3,
        config=SampleConfig(steps=2, frames=3),
    )
    assert video.frames.shape == (3, 16, 16, 3)
    video.save(tmp_path / "out" / "video.mp4")
    again = api.regenerate(tmp_path / "out" / "video.mp4.json", device="cpu")
    assert np.array_equal(again.frames, video.frames)
    assert again.made == video.made
    file.save(tmp_path / "dog.safetensors", identity(unet3d, "cat"))
    with pytest.raises(BadInput, match="it has changed"):
        api.regenerate(tmp_path / "out" / "video.mp4.json", device="cpu")


def test_a_concept_in_memory_needs_no_file(unet3d: VideoBase, tmp_path):
    saved = tmp_path / "dog.safetensors"
    file.save(saved, identity(unet3d))
    subject = file.load(saved)
    saved.unlink()
    video = api.generate(unet3d, "a *", concepts=[subject], config=SampleConfig(steps=1, frames=1))
    assert video.made["concepts"] == [{"name": subject.meta.name, "weight": "1"}]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a * running", {}, "stands for one subject, but 0 are given"),
        ("a <cat>", {}, "<cat> is not among the learned words"),
        ("a dog", {"config": {"height": 12}}, "multiple of 8"),
        ("a dog", {"config": {"frames": 0}}, "at least 1"),
        ("a dog", {"config": {"sampler": "euler"}}, "one of ddim"),
        ("a dog", {"weights": [1.0]}, "1 weights for 0 concepts"),
        ("a dog", {"appearance": "nowhere.png"}, "none of the concepts"),
        ("a dog", {"inversion": "nowhere.mp4"}, "nowhere.mp4"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(unet3d: VideoBase, prompt: str, options: dict, message: str):
    with pytest.raises(BadInput, match=message) as caught:
        given = {**options, "config": SampleConfig(**options.get("config", {}))}
        api.generate(unet3d, prompt, **given)
    assert "\n" not in str(caught.value)


def test_animatediff_refuses_more_frames_than_it_has_positions():
    from dreamvideo import bases

    with pytest.raises(BadInput, match="32 frame positions"):
        sample.generate(bases.load("tiny-animatediff"), "a dog", Composition(), SampleConfig(frames=33), seed=0)


def test_concepts_ask_for_examples_that_they_were_learned_with(unet3d: VideoBase):
    guided, subject = motion(unet3d), identity(unet3d)
    inverted = replace(subject, meta=replace(subject.meta, sampling=file.Sampling(inversion=0.5)))
    examples = {"pictures": [Path("0.png"), Path("1.png")], "clips": [Path("0.mp4"), Path("1.mp4")]}
    assert api.exemplified([subject], **examples) == {}
    assert api.exemplified([subject, guided], **examples) == {"appearance": Path("0.png")}
    assert api.exemplified([inverted], **examples) == {"inversion": Path("0.mp4")}
    assert api.exemplified([guided, inverted]) == {}
