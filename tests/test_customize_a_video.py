"""Customize-A-Video: single frames teach the absorbers, the clip teaches the motion, and the motion alone is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

import dreamvideo as dv
from dreamvideo import api, methods
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.ports import BasicTransformerBlock
from dreamvideo.bases.base import VideoBase
from dreamvideo.bases.unet3d import UNet3D
from dreamvideo.concept import Concept
from dreamvideo.data import Batch, Data, DataConfig
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import BadConfig
from dreamvideo.methods import customize_a_video
from dreamvideo.methods.method import Method, Stage
from dreamvideo.sample import Composition, SampleConfig, Thrift
from dreamvideo.views import View, random_patches

METHOD = methods.find("customize-a-video")
SMALL = SampleConfig(frames=2, steps=2)


def randn(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(name))


def disturb(adapters: AdapterSet) -> AdapterSet:
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            parameter += 0.2 * randn(*parameter.shape, name=name)
    return adapters


def batches(
    method: Method, base: VideoBase, concept: Concept, stage: Stage, count: int, **config: Any
) -> Sequence[Batch]:
    """Batches of one, as the loop draws them in a stage."""
    data = Data(base, concept, DataConfig(**config), prompt=method.prompt, wants=stage.wants, views=stage.views)
    with base.attached(*stage.hold.values(), *stage.learn.values()):
        data.encode_text()
        draws = (Draw(base.process, generator(stage.name, number)) for number in range(count))
        return [data.batch([0], draw, live_text=False, views=stage.views) for draw in draws]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The posterior's mean instead of a sample."""
    monkeypatch.setattr(Draw, "posterior", lambda draw, mean, std: mean)


def test_the_papers_parameter_counts(motion_concept: Concept) -> None:
    tiny = UNet3D.tiny(0)
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=1024, num_attention_heads=16, num_hidden_layers=1))
        parts = replace(tiny.parts, denoiser=UNet3DConditionModel(), text_encoder=text_encoder)
        full = UNet3D(tiny.origin, parts=parts, defaults=tiny.defaults)
        absorb, motion = METHOD().stages(full, motion_concept, seed=0)
    assert {name: adapters.count() for name, adapters in absorb.learn.items()} == {"looks": 207_488, "word": 4_096}
    assert {name: adapters.count() for name, adapters in motion.learn.items()} == {"motion": 831_488}


def test_alpha_is_the_factor_whatever_the_rank(unet3d: VideoBase, motion_concept: Concept) -> None:
    absorb, motion = METHOD(rank=3, alpha=0.7, looks_rank=2).stages(unet3d, motion_concept, seed=0)
    for adapters, alpha in ((absorb.learn["looks"], 0.5), (motion.learn["motion"], 0.7)):
        site = disturb(adapters).sites[0]
        layer, state = unet3d.locate(site), adapters.state_dict()
        x = randn(2, 5, site.shape[1], name="x")
        plain = layer(x)
        with unet3d.attached(adapters):
            delta = alpha * x @ (state[f"{site.key}.up"] @ state[f"{site.key}.down"]).T
            torch.testing.assert_close(layer(x), plain + delta, atol=1e-5, rtol=1e-5)


def test_absorbers_see_single_frames_and_the_motion_sees_the_clip(
    base_over_time: VideoBase, motion_concept: Concept, exact: None
) -> None:
    method = METHOD(still="a car")
    absorb, motion = method.stages(base_over_time, motion_concept, seed=0)
    singles = batches(method, base_over_time, motion_concept, absorb, 60)
    (clip,) = batches(method, base_over_time, motion_concept, motion, 1, frames=6)
    assert clip.latents.shape[2] == 6 and clip.prompts == ("a car turning <turn>",)
    assert {single.prompts for single in singles} == {("a car <turn>",)}
    frames = [single.latents for single in singles]
    seen = {
        int(torch.stack([(frame[0] - clip.latents[0, :, n : n + 1]).abs().max() for n in range(6)]).argmin())
        for frame in frames
    }
    assert {frame.shape[2] for frame in frames} == {1} and seen == set(range(6))


@pytest.mark.parametrize(("number", "mixing"), [(0, False), (1, True)])
def test_only_the_clip_passes_the_layers_that_mix_frames(
    base_over_time: VideoBase, motion_concept: Concept, number: int, mixing: bool
) -> None:
    """And the loss is the plain one, with the absorbers in place."""
    base, method = base_over_time, METHOD()
    stage = method.stages(base, motion_concept, seed=0)[number]
    sets = [disturb(adapters) for adapters in (*stage.hold.values(), *stage.learn.values())]
    (batch,) = batches(method, base, motion_concept, stage, 1)
    ran = []
    for path, module in base.parts.denoiser.named_modules():
        if isinstance(module, BasicTransformerBlock) and base.axis(path) == "time":
            module.register_forward_hook(lambda *_: ran.append(1))
    with base.attached(*sets), torch.no_grad():
        ((name, term),) = method.terms(base, stage.learn, batch, Draw(base.process, generator("t")))
        assert name == "denoise" and bool(ran) == mixing
        x_t, t, target = Draw(base.process, generator("t")).noised(batch.latents)
        with base.given(bypass_time=not mixing):
            torch.testing.assert_close(term, (base.predict(x_t, t, batch.text) - target).square().mean())
        with stage.unaided(), base.given(bypass_time=not mixing):
            without = (base.predict(x_t, t, batch.text) - target).square().mean()
    assert not torch.allclose(term, without, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "learned", "said"),
    [
        ({"vectors": 0}, [{"looks"}, {"motion"}], "a car turning"),
        ({"looks_rank": 0}, [{"word"}, {"motion"}], "a car turning <turn>"),
        ({"vectors": 0, "looks_rank": 0}, [{"motion"}], "a car turning"),
    ],
)
def test_either_absorber_or_none(
    unet3d: VideoBase, motion_concept: Concept, settings: Mapping[str, int], learned: list[set[str]], said: str
) -> None:
    method = METHOD(**settings)
    stages = method.stages(unet3d, motion_concept, seed=0)
    assert [stage.learn.keys() for stage in stages] == learned
    assert [stage.live_text for stage in stages] == ["word" in names for names in learned]
    for stage in stages:
        assert batches(method, unet3d, motion_concept, stage, 1)[0].prompts == (said,)


def test_a_still_that_cannot_be_filled_in_is_said(unet3d: VideoBase, motion_concept: Concept) -> None:
    with pytest.raises(BadConfig, match=r"cannot be filled in: \{caption\} may stand in it"):
        METHOD(still="a {thing}").stages(unet3d, motion_concept, seed=0)


def test_patches_are_parts_of_every_frame_enlarged(unet3d: VideoBase, motion_concept: Concept) -> None:
    absorb, motion = METHOD(patches=200).stages(unet3d, motion_concept, seed=0)
    sides = [1 / view.scale for view in absorb.views]
    assert len(sides) == 200 and 0.33 <= min(sides) < 0.36 and 0.64 < max(sides) <= 0.67
    assert all(view.frames == 1 for view in absorb.views) and motion.views == (View(words="{prompt} <turn>"),)
    slope = torch.linspace(-1, 1, 32).expand(1, 3, 2, 32, 32) * torch.tensor([1.0, 0.5])[:, None, None]
    for view in random_patches(5, generator("patches")):
        patch, side = view.show(slope), 1 / view.scale
        assert patch.shape == slope.shape
        # A part of an even slope is an even slope, as much shorter; its place says where it begins.
        torch.testing.assert_close(
            patch[..., -2] - patch[..., 1], side * (slope[..., -2] - slope[..., 1]), atol=0.05, rtol=0
        )
        torch.testing.assert_close(
            patch[0, 0, 0, 5, 0], torch.tensor(-1 + 2 * (1 - side) * view.place[1]), atol=0.1, rtol=0
        )
        torch.testing.assert_close(patch[:, :, 1], 0.5 * patch[:, :, 0])


def test_the_motion_alone_is_kept_and_seen(
    base_over_time: VideoBase,
    turn: Path,
    motion_concept: Concept,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From clip to video: the absorbers help, frozen, and are neither in the file nor in a preview."""
    base, about = base_over_time, {"method": METHOD.name, "caption": "a car turning"}
    values = {"vectors": 2, "lr": 0.02, "absorb_lr": 0.05}
    settings = [{"train": {"steps": 3, "batch": 1, "save_every": 1, "preview_every": 3}, "method": values}]
    stages, batches, previews = list[Stage](), list[Batch](), list[np.ndarray]()
    make, denoise, sampled = METHOD.stages, customize_a_video.denoising, api._sampled

    def staged(method: Method, *args: Any, **rest: Any) -> Sequence[Stage]:
        stages[:] = make(method, *args, **rest)
        return stages

    def watched(base: VideoBase, batch: Batch, draw: Draw, **rest: Any) -> Tensor:
        batches.append(batch)
        return denoise(base, batch, draw, **rest)

    def shown(*args: Any, **rest: Any) -> np.ndarray:
        previews.append(sampled(*args, **rest))
        return previews[-1]

    monkeypatch.setattr(METHOD, "stages", staged)
    monkeypatch.setattr(customize_a_video, "denoising", watched)
    monkeypatch.setattr(api, "_sampled", shown)
    start = make(METHOD(**values), base, motion_concept, seed=0)[0].learn["word"].state_dict()
    learned = api.learn(base, turn, out=tmp_path / "r", settings=settings, **about)

    looks, word = (stages[0].learn[name] for name in ("looks", "word"))
    assert [batch.latents.shape[2] for batch in batches] == [1, 1, 1, 4, 4, 4]
    assert not any(torch.equal(word.state_dict()[name], tensor) for name, tensor in start.items())
    with base.attached(word):
        text = base.encode_text(["a car turning <turn>"])
    assert all(torch.equal(batch.text, text) and not batch.text.requires_grad for batch in batches[3:])
    assert batches[0].text.requires_grad

    assert learned.sets.keys() == {"motion"}
    assert all(tensor.any() for tensor in learned.sets["motion"].state_dict().values())
    last, rest = previews[-1], ("a car turning", Composition(noise_offset=0.0), SampleConfig(), 0, Thrift())
    with base.attached(learned.sets["motion"]):
        assert (sampled(base, *rest) == last).all()
        with base.attached(looks):
            assert (sampled(base, *rest) != last).any()
    dv.generate(base, "a dog turning", concepts=[learned], config=SMALL)


def test_a_run_that_was_cut_off_ends_in_the_same_file(unet3d: VideoBase, turn: Path, tmp_path: Path) -> None:
    def learned(out: str, *, stop: tuple[str, int] | None = None) -> dict[str, Tensor]:
        def on_step(progress: Any) -> None:
            if (progress.stage, progress.step) == stop:
                raise KeyboardInterrupt

        values = [{"train": {"steps": 2, "batch": 1, "save_every": 1}, "method": {"lr": 0.02, "absorb_lr": 0.02}}]
        about = {"method": METHOD.name, "caption": "a car", "settings": values}
        return api.learn(unet3d, turn, out=tmp_path / out, on_step=on_step, **about).sets["motion"].state_dict()

    whole = learned("whole")
    for stop in (("absorb", 1), ("absorb", 2), ("motion", 1)):
        with pytest.raises(KeyboardInterrupt):
            learned("-".join(map(str, stop)), stop=stop)
        resumed = learned("-".join(map(str, stop)))
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
