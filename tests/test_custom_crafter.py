"""CustomCrafter: where it learns, from which views and templates, and how it is held back in the first steps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

import dreamvideo as dv
from dreamvideo import api, methods
from dreamvideo.adapters.file import load
from dreamvideo.bases.base import VideoBase
from dreamvideo.bases.unet3d import UNet3D
from dreamvideo.concept import Concept
from dreamvideo.data import Batch, Data, DataConfig
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import BadConfig
from dreamvideo.methods.method import Method, denoising
from dreamvideo.sample import SampleConfig

METHOD = methods.find("custom-crafter")
SAID = {"video of a <dog> dog", "<dog> dog", "a static video of a <dog> dog", "a <dog> dog"}


def batches(method: Method, base: VideoBase, concept: Concept, count: int, **data: Any) -> Sequence[Batch]:
    """Batches of one, as the loop draws them."""
    (stage,) = method.stages(base, concept, seed=0)
    examples = Data(base, concept, DataConfig(), prompt=method.prompt, wants=stage.wants, views=stage.views, **data)
    with base.attached(*stage.learn.values()):
        examples.encode_text()
        draws = (Draw(base.process, generator("batch", number)) for number in range(count))
        return [examples.batch([0], draw, live_text=False, views=stage.views) for draw in draws]


def test_the_papers_parameter_counts(subject_concept: Concept) -> None:
    tiny = UNet3D.tiny(0)
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=1024, num_attention_heads=16, num_hidden_layers=1))
        parts = replace(tiny.parts, denoiser=UNet3DConditionModel(), text_encoder=text_encoder)
        full = UNet3D(tiny.origin, parts=parts, defaults=tiny.defaults)
        (stage,) = METHOD(shown=0).stages(full, subject_concept, seed=0)
    counts = {name: adapters.count() for name, adapters in stage.learn.items()}
    assert counts["subject"] + counts["text"] == 630_272 and counts["word"] == 1024


def test_queries_keys_and_values_of_space_alone(base: VideoBase, subject_concept: Concept) -> None:
    (stage,) = METHOD().stages(base, subject_concept, seed=0)
    sites = [site for name in ("subject", "text") for site in stage.learn[name].sites]
    assert {site.axis for site in sites} == {"space"}
    layers = [site.path.partition(".transformer_blocks.0.")[2] for site in sites]
    blocks = len(base.sites("space", ("attn1",)))
    assert sorted(layers) == sorted(blocks * [f"attn{n}.to_{of}" for n in (1, 2) for of in "qkv"])
    assert {site.path.rpartition(".")[2] for site in stage.learn["text"].sites} == {"to_k", "to_v"}
    (vectors,) = stage.learn["word"].state_dict().values()
    torch.testing.assert_close(vectors[0], base.token_vectors("dog").mean(dim=0))


@pytest.mark.parametrize("detach", [True, False])
def test_the_start_token_may_teach_keys_and_values_nothing(
    base: VideoBase, subject_concept: Concept, detach: bool
) -> None:
    (stage,) = METHOD(detach_start=detach).stages(base, subject_concept, seed=0)
    text = torch.randn(2, 6, 32, generator=generator("text"))
    for adapters, taught in ((stage.learn["text"], not detach), (stage.learn["subject"], True)):
        adapters.requires_grad_(True)
        site = next(site for site in adapters.sites if site.shape[1] == 32)
        with base.attached(adapters):
            base.locate(site)(text)[:, :1].sum().backward()
        assert any(bool(p.grad.any()) for p in adapters.parameters() if p.grad is not None) == taught


def test_every_template_is_said_of_every_picture_that_is_encoded_once(
    unet3d: VideoBase, subject_concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = [], unet3d.encode_video
    monkeypatch.setattr(unet3d, "encode_video", lambda pixels: (encoded.append(1), encode(pixels))[1])
    drawn = batches(METHOD(shown=0), unet3d, subject_concept, 40)
    assert {prompt for batch in drawn for prompt in batch.prompts} == SAID
    assert len(encoded) == len(subject_concept.examples)
    captioned = replace(
        subject_concept, examples=[replace(example, caption="* on a table") for example in subject_concept.examples]
    )
    (batch,) = batches(METHOD(shown=0, templates=("video of a {subject}",)), unet3d, captioned, 1)
    assert batch.prompts == ("video of a <dog> dog on a table",)
    with pytest.raises(BadConfig, match="cannot be filled in"):
        METHOD(templates=("video of a {}",)).stages(unet3d, subject_concept, seed=0)


def test_a_view_is_shown_and_said_for_as_long_as_the_clip_stands_still(
    unet3d: VideoBase, subject_concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Draw, "posterior", lambda draw, mean, std: mean)
    (stage,) = METHOD(smallest=0.4, shown=200).stages(unet3d, subject_concept, seed=0)
    assert 0.4 <= min(view.scale for view in stage.views) < 0.42 and {view.frames for view in stage.views} == {4}
    assert {view.flip for view in stage.views} == {True, False}
    drawn = batches(METHOD(shown=12), unet3d, subject_concept, 60)
    for batch in drawn:
        assert batch.latents.shape[2] == 4
        assert all(torch.equal(frame, batch.latents[:, :, 0]) for frame in batch.latents.unbind(dim=2))
        (prompt,) = batch.prompts
        prefix, subject, rest = prompt.partition(next(said for said in sorted(SAID, key=len)[::-1] if said in prompt))
        assert prefix in {"", "a far away ", "very small ", "zoomed in ", "close up "} and subject and not rest
        assert (batch.mask is not None) == (prefix in {"a far away ", "very small "})
    assert len({batch.prompts for batch in drawn}) > 6
    single = batches(METHOD(shown=0, frames=1), unet3d, subject_concept, 1)[0]
    assert single.latents.shape[2] == 1


@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_the_prior_stands_still_as_long_and_has_a_pass_of_its_own(
    unet3d: VideoBase, subject_concept: Concept, loss: Any
) -> None:
    method = METHOD(loss=loss, shown=0, class_count=2, prior_weight=0.3)
    (batch,) = batches(
        method, unet3d, subject_concept, 1, class_images=method.class_images(subject_concept),
        sampler=lambda prompt, number: torch.randn(1, 4, 1, 4, 4, generator=generator(prompt, number)),
    )  # fmt: skip
    assert batch.prior is not None and batch.prior.prompts == ("a dog",) and batch.prior.latents.shape[2] == 4
    assert torch.equal(batch.prior.latents[:, :, 3], batch.prior.latents[:, :, 0])
    with torch.no_grad():
        terms = dict(method.terms(unet3d, {}, batch, Draw(unet3d.process, generator("t"))))
        draw = Draw(unet3d.process, generator("t"))

        def expected(batch: Batch) -> Tensor:
            x_t, t, target = draw.noised(batch.latents)
            difference = unet3d.predict(x_t, t, batch.text) - target
            return difference.abs().mean() if loss == "l1" else difference.pow(2).mean()

        assert terms.keys() == {"denoise", "prior"}
        torch.testing.assert_close(terms["denoise"], expected(batch))
        torch.testing.assert_close(terms["prior"], 0.3 * expected(batch.prior))


def test_absolute_errors_by_area_count_the_picture_alone(unet3d: VideoBase, subject_concept: Concept) -> None:
    (batch,) = batches(METHOD(shown=0), unet3d, subject_concept, 1)
    mask = torch.zeros(1, 1, 1, 4, 4)
    mask[..., 1:3, :2] = 1
    draw, again = (Draw(unet3d.process, generator("l")) for _ in range(2))
    with torch.no_grad():
        loss = denoising(unet3d, replace(batch, mask=mask), draw, offset=0.0, by_area=True, error=torch.abs)
        x_t, t, target = again.noised(batch.latents)
        inside = (unet3d.predict(x_t, t, batch.text) - target)[..., 1:3, :2]
    torch.testing.assert_close(loss, inside.abs().mean())


@pytest.mark.parametrize(("steps", "first"), [(50, 5), (10, 1), (20, 2), (100, 10)])
def test_exactly_the_first_tenth_of_the_steps_is_held_back(steps: int, first: int) -> None:
    """As sampling asks for it, by step / (steps - 1)."""
    weight = METHOD().sampling().weight
    assert [weight.at(step / (steps - 1)) for step in range(steps)] == first * [0.4] + (steps - first) * [0.8]
    assert str(weight) == "0.4@0,0.8@0.1"


def test_it_runs_from_pictures_to_video(
    base: VideoBase, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file alone says that 0.4 is the weight in the first 5 of 50 steps, and 0.8 in the others."""
    values = {"lr": 0.02, "shown": 2, "class_count": 1}
    settings = [{"train": {"steps": 2, "batch": 1}, "method": values}]
    api.learn(base, dog, method="custom-crafter", word="dog", out=tmp_path, settings=settings)
    learned = load(tmp_path / "dog.safetensors")
    assert learned.sets.keys() == {"subject", "text", "word"}
    assert all(tensor.any() for adapters in learned.sets.values() for tensor in adapters.state_dict().values())
    scales, predict = list[float](), base.predict
    factors = [graft.scale for name in ("subject", "text") for graft in learned.sets[name].grafts.values()]
    words = [graft.scale for graft in learned.sets["word"].grafts.values()]

    def watched(*inputs: Tensor) -> Tensor:
        (factor,) = {float(factor) for factor in factors}
        assert {float(word) for word in words} == {1.0}
        scales.append(round(factor, 6))
        return predict(*inputs)

    monkeypatch.setattr(base, "predict", watched)
    dv.generate(base, "a <dog> runs", concepts=[learned], config=SampleConfig(frames=1, steps=50))
    assert scales == 5 * [0.4] + 45 * [0.8]
