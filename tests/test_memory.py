"""What a run takes is told before it begins: estimates against what is really alive, presets, refusals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from dreamvideo import memory, thrift, train
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import BadConfig, BadInput
from dreamvideo.memory import Need
from dreamvideo.recipe import Recipe, resolve
from dreamvideo.sample import SampleConfig, Thrift


def recipe_of(base: VideoBase, concept: Concept, **settings: object) -> Recipe:
    wishes = {"train": {"batch": 1, "steps": 2, **settings}}
    return resolve("dreamvideo-motion", base, concept, settings=[wishes])


def need_of(base: VideoBase, concept: Concept, **settings: object) -> Need:
    recipe = recipe_of(base, concept, **settings)
    (stage,) = recipe.method.stages(base, concept, seed=0)
    return memory.estimate(recipe, base, concept, stage)


def test_bytes_count_while_a_tensor_is_there():
    with memory._Alive([]) as count:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del a, b
        c = torch.zeros(500)
    assert (count.most, count.now) == (8000, 6000)
    del view, c
    assert count.now == 0


@pytest.mark.parametrize("rematerialise", [False, True])
def test_estimate_is_what_is_really_alive(unet3d: VideoBase, motion_concept: Concept, rematerialise: bool):
    """The same pass with real tensors. They differ by what kernels keep for themselves."""
    base, need = unet3d, need_of(unet3d, motion_concept, rematerialise=rematerialise)
    recipe = recipe_of(base, motion_concept)
    (stage,) = recipe.method.stages(base, motion_concept, seed=0)
    (adapters,) = stage.learn.values()
    parts = (base.parts.denoiser, base.parts.text_encoder)
    with base.attached(adapters.requires_grad_(True)), base.learning(rematerialise=rematerialise):
        known = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        with memory._Alive([*known, *adapters.parameters()]) as count:
            draw = Draw(base.process, generator("memory"))
            x_t, t, target = draw.noised(torch.randn(1, 4, base.defaults.frames, 4, 4))
            loss = (base.predict(x_t, t, base.encode_text(["a dog"])) - target).square().mean()
            torch.autograd.grad(loss, adapters.parameters(), allow_unused=True)
    assert need.passing == pytest.approx(count.most, rel=0.15)
    assert need.learned == 16 * adapters.count()


def test_a_cpu_has_the_larger_margin():
    here, there = (
        Need(frozen=1000, learned=100, passing=300, device=torch.device(device)).total for device in ("cpu", "cuda")
    )
    assert (here, there) == pytest.approx((1800, 1460), abs=1)


def test_what_saves_memory_is_seen_to(unet3d: VideoBase, motion_concept: Concept):
    plain, sparing = need_of(unet3d, motion_concept), need_of(unet3d, motion_concept, rematerialise=True, offload=True)
    assert sparing.passing < 0.8 * plain.passing
    parts = unet3d.parts
    tensors = [t for part in (parts.vae, parts.image_encoder) for t in (*part.parameters(), *part.buffers())]
    aside = sum(t.numel() * t.element_size() for t in tensors)
    assert plain.frozen - sparing.frozen == aside
    assert need_of(unet3d, motion_concept, batch=4).passing > 3 * plain.passing


def test_run_that_will_not_fit_is_refused_before_anything_is_written(
    unet3d: VideoBase, motion_concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "LARGE", 0)
    monkeypatch.setattr(memory, "room", lambda device: 1000)
    with pytest.raises(BadInput, match=r"takes about .* has .*: try --preset auto or --set ") as caught:
        train.fit(recipe_of(unet3d, motion_concept), unet3d, motion_concept, tmp_path / "run")
    assert "\n" not in str(caught.value)
    half = unet3d.defaults.frames // 2, unet3d.defaults.height // 2, unet3d.defaults.width // 2
    smaller = " or ".join(("--set data.frames={}", "--set data.height={} --set data.width={}")).format(*half)
    assert str(caught.value).endswith(f": try --preset auto or {smaller}")
    with pytest.raises(BadInput, match=r"try --set train\.batch=2 or --set data\.frames"):
        sparing = recipe_of(unet3d, motion_concept, batch=4, rematerialise=True, offload=True)
        train.fit(sparing, unet3d, motion_concept, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(memory, "room", lambda device: 2**40)
    assert train.fit(recipe_of(unet3d, motion_concept), unet3d, motion_concept, tmp_path / "run").path.exists()


def test_small_bases_are_not_looked_at(
    unet3d: VideoBase, motion_concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "room", lambda device: 0)
    assert train.fit(recipe_of(unet3d, motion_concept), unet3d, motion_concept, tmp_path / "run").path.exists()


def test_offloaded_run_learns_the_same(unet3d: VideoBase, motion_concept: Concept, tmp_path: Path):
    results = [
        train.fit(recipe_of(unet3d, motion_concept, offload=wanted), unet3d, motion_concept, tmp_path / str(wanted))
        for wanted in (False, True)
    ]
    plain, offloaded = (result.sets["motion"].state_dict() for result in results)
    assert all(torch.equal(plain[name], offloaded[name]) for name in plain)


def test_presets(unet3d: VideoBase, motion_concept: Concept, monkeypatch: pytest.MonkeyPatch):
    def made(preset: str) -> tuple[bool, bool]:
        make = partial(resolve, "dreamvideo-motion", unet3d, motion_concept)
        train = memory.chosen(preset, make, unet3d, motion_concept, settings=[{"train": {"batch": 1}}]).train
        return train.rematerialise, train.offload

    for name, settings in memory.PRESETS.items():
        assert made(name) == (settings["rematerialise"], settings["offload"])
    with pytest.raises(BadConfig, match="one of auto, 24gb"):
        made("6gb")
    first, last = ((each["rematerialise"], each["offload"]) for each in (*memory.PRESETS.values(),)[::3])
    monkeypatch.setattr(memory, "room", lambda device: 2**40)
    assert made("auto") == first
    # Not even the most sparing fits: the run itself refuses, with the numbers.
    monkeypatch.setattr(memory, "room", lambda device: 0)
    assert made("auto") == last


# -- while a video is sampled -----------------------------------------------------------------------------------------


def sampling(base: VideoBase, frames: int = 4) -> tuple[VideoBase, SampleConfig, list[AdapterSet]]:
    """What `thrift.estimate` takes: a video with a motion's adapters."""
    adapters = AdapterSet(Bottleneck(condition=base.image_width), base.sites("time", ("attn1", "ff")))
    return base, SampleConfig(frames=frames).filled(base.defaults), [adapters]


def test_estimate_of_sampling_is_what_is_really_alive(unet3d: VideoBase):
    base, config, (adapters,) = sampling(unet3d, frames=16)
    need = thrift.estimate(base, config, [adapters], Thrift())
    with torch.no_grad(), base.attached(adapters):
        known = [t for part in base.parts.modules for t in (*part.parameters(), *part.buffers())]
        with memory._Alive([*known, *adapters.parameters()]) as count:
            base.predict(torch.randn(2, 4, 16, 4, 4), torch.tensor([7, 7]), base.encode_text(["", "a dog"]))
    assert need.passing == pytest.approx(count.most, rel=0.15)
    assert need.learned == 4 * adapters.count()
    assert need.frozen == memory.weights(base)


def test_estimate_sees_what_saves_memory_while_sampling(unet3d: VideoBase):
    base, config, sets = sampling(unet3d, frames=16)
    plain, apart, offload = (
        thrift.estimate(base, config, sets, each) for each in (Thrift(), Thrift(apart=True), Thrift(offload=True))
    )
    assert apart.passing == pytest.approx(plain.passing / 2, rel=0.15)
    assert offload.total < plain.total
    unguided = thrift.estimate(base, SampleConfig(frames=16, guidance=1).filled(base.defaults), sets, Thrift())
    assert unguided.passing == apart.passing


def test_passes_are_counted_once(unet3d: VideoBase, monkeypatch: pytest.MonkeyPatch):
    counted, peak = [], memory.peak

    def counting(base: VideoBase, run: Callable[[], None], parameters: list[torch.Tensor]) -> int:
        counted.append(run)
        return peak(base, run, parameters)

    monkeypatch.setattr(memory, "peak", counting)
    needs = [thrift.estimate(*sampling(unet3d), Thrift()) for _ in range(2)]
    assert needs[0] == needs[1]
    assert len(counted) == 2  # denoising, decoding
    thrift.estimate(*sampling(unet3d, frames=5), Thrift())
    assert len(counted) > 2


def test_auto_takes_the_first_preset_that_fits(unet3d: VideoBase, monkeypatch: pytest.MonkeyPatch):
    base, config, sets = sampling(unet3d, frames=16)
    monkeypatch.setattr(memory, "LARGE", 0)
    presets = list(thrift.PRESETS.values())
    totals = [thrift.estimate(base, config, sets, each).total for each in presets]
    assert totals == sorted(totals, reverse=True)
    for each, total in zip(presets, totals, strict=True):
        monkeypatch.setattr(memory, "there", lambda base, total=total: total)
        assert thrift.chosen("auto", base, config, sets) == each
    monkeypatch.setattr(memory, "there", lambda base: totals[-1] - 1)
    with pytest.raises(BadInput, match="fewer --frames than 16") as caught:
        thrift.chosen("auto", base, config, sets)
    assert "--preset" not in str(caught.value)


@pytest.mark.parametrize("preset", [None, *thrift.PRESETS])
def test_a_preset_says_how_a_video_is_sampled(unet3d: VideoBase, preset: str | None):
    """On a small base nothing is counted."""
    config = SampleConfig().filled(unet3d.defaults)
    assert thrift.chosen(preset, unet3d, config) == thrift.PRESETS.get(preset, Thrift())
    with pytest.raises(BadConfig, match="--preset 6gb: one of auto, 24gb"):
        thrift.chosen("6gb", unet3d, config)


def test_video_that_will_not_fit_is_refused_before_anything_is_done(
    run, unet3d: VideoBase, monkeypatch: pytest.MonkeyPatch
):
    _, config, _ = sampling(unet3d, frames=16)
    least = thrift.estimate(unet3d, config, [], thrift.PRESETS["8gb"]).total - memory.weights(unet3d)
    monkeypatch.setattr(memory, "LARGE", 0)
    monkeypatch.setattr(memory, "room", lambda device: least)
    words = ("generate", "a dog", "--base", "tiny", "--steps", 1, "--frames", 16, "--out", "dog.gif")
    code, _, err = run(*words)
    assert code == 2
    assert "sampling takes about" in err.splitlines()[-1]
    assert "for it: try --preset 8gb or fewer --frames than 16" in err.splitlines()[-1]
    assert not Path("dog.gif").exists()
    monkeypatch.setattr(memory, "LARGE", 2**30)
    assert run(*words, "--preset", "6gb")[0] == 2
    assert run(*words)[0] == 0
    assert run("generate", "--from", "dog.gif.json", "--preset", "8gb", "--out", "again.gif")[0] == 0


@pytest.mark.parametrize(("side", "at_once"), [(64, 8), (256, 2), (512, 1)])
def test_the_larger_frames_are_the_fewer_pass_the_autoencoder_at_once(
    unet3d: VideoBase, side: int, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    vae, seen = unet3d.parts.vae, []
    for name in ("encode", "decode"):
        watched = getattr(vae, name)
        monkeypatch.setattr(vae, name, lambda part, watched=watched: seen.append(len(part)) or watched(part))
    mean, _ = unet3d.encode_video(torch.zeros(1, 3, at_once + 1, side, side))
    unet3d.decode(mean)
    assert seen == [at_once, 1] * 2
