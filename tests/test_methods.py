"""What each method does beside what all do: which set a term teaches, class images, views, phrases, merging."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import dreamvideo as dv
from dreamvideo import api, methods, processes, sample
from dreamvideo.adapters.file import ConceptFile, load, save
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.words import Word
from dreamvideo.bases.base import VideoBase
from dreamvideo.bases.unet3d import UNet3D
from dreamvideo.concept import Concept, read_concept
from dreamvideo.data import Batch, ClassImages, Data, DataConfig
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import BadConfig, BadInput, Unsupported
from dreamvideo.merging import merged
from dreamvideo.methods.method import denoising
from dreamvideo.methods.prompts import subject_prompt
from dreamvideo.sample import SampleConfig
from dreamvideo.views import View, random_views
from dreamvideo.wording import plain_words, worded

SMALL = SampleConfig(frames=2, steps=2)


def settings(**values: Any) -> list[Mapping[str, Any]]:
    return [{"train": {"steps": 2, "batch": 1, "save_every": 1}, "method": values}]


def randn(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(name))


def disturb(adapters: AdapterSet, *, by: float = 0.1) -> AdapterSet:
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            parameter += by * randn(*parameter.shape, name=name)
    return adapters


@pytest.fixture
def two_clips(turn: Path, tmp_path: Path) -> Concept:
    for name in ("a", "b"):
        (tmp_path / "turns").mkdir(exist_ok=True)
        shutil.copy(turn, tmp_path / "turns" / f"{name}.mp4")
    return read_concept(tmp_path / "turns", kind="clip", caption="a car turning")


# -- MotionDirector ---------------------------------------------------------------------------------------------------


def director(base: VideoBase, concept: Concept, **values: Any) -> tuple[Any, dict[str, AdapterSet], Any]:
    method = methods.find("motion-director")(dropout=0.0, **values)
    (stage,) = method.stages(base, concept, seed=0)
    sets = {name: disturb(adapters).requires_grad_(True) for name, adapters in stage.learn.items()}
    return method, sets, stage


def a_batch(base: VideoBase, *numbers: int) -> Batch:
    text = base.encode_text(["a car turning", ""])
    return Batch(
        latents=randn(len(numbers), 4, 3, 4, 4, name="x"),
        prompts=("a car turning",) * len(numbers),
        text=text[:1].expand(len(numbers), -1, -1),
        empty_text=text[1:],
        numbers=numbers,
    )


def touched(adapters: AdapterSet) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in adapters.parameters())


def test_every_clip_has_looks_of_its_own_that_are_not_kept(base_over_time: VideoBase, two_clips: Concept) -> None:
    _, sets, stage = director(base_over_time, two_clips)
    assert sets.keys() == {"motion", "looks-0", "looks-1"}
    assert stage.aside == {"looks-0", "looks-1"}
    first, second = (sets[name].state_dict() for name in ("looks-0", "looks-1"))
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("down"))


def test_each_term_teaches_its_own_set(base_over_time: VideoBase, two_clips: Concept) -> None:
    method, sets, _ = director(base_over_time, two_clips, skip_spatial=0.0)
    with base_over_time.attached(*sets.values()):
        terms = method.terms(
            base_over_time, sets, a_batch(base_over_time, 1), Draw(base_over_time.process, generator("t"))
        )
        name, term = next(terms)
        term.backward()
        assert name == "spatial"
        assert {label for label, adapters in sets.items() if touched(adapters)} == {"looks-1"}
        gradients = [p.grad.clone() for p in sets["looks-1"].parameters()]
        name, term = next(terms)
        term.backward()
        assert name == "temporal" and next(terms, None) is None
    assert touched(sets["motion"]) and not touched(sets["looks-0"])
    assert all(torch.equal(p.grad, g) for p, g in zip(sets["looks-1"].parameters(), gradients, strict=True))
    assert all(p.requires_grad for adapters in sets.values() for p in adapters.parameters())


def test_temporal_term_is_the_formula(base_over_time: VideoBase, motion_concept: Concept) -> None:
    """|| d ||^2 + || phi(d) ||^2 with the clip's looks on, against sums written out frame by frame."""
    method, sets, _ = director(base_over_time, motion_concept, skip_spatial=0.0, beta=0.7)
    batch = a_batch(base_over_time, 0)
    with base_over_time.attached(*sets.values()), torch.no_grad():
        terms = dict(method.terms(base_over_time, sets, batch, Draw(base_over_time.process, generator("t"))))
        draw = Draw(base_over_time.process, generator("t"))
        x_t, t, target = draw.noised(batch.latents)
        assert not draw.chance(0.0)
        frame, anchor = draw.index(3), draw.index(3)
        sets["looks-0"].scale(1.0)
        predicted = base_over_time.predict(x_t, t, batch.text)
        sets["motion"].scale(0.0)
        with base_over_time.given(bypass_time=True):
            alone = base_over_time.predict(x_t[:, :, frame : frame + 1], t, batch.text)[:, :, 0]
    torch.testing.assert_close(terms["spatial"], (alone - target[:, :, frame]).square().mean())

    def phi(eps: Tensor) -> Tensor:
        frames = [1.49**0.5 * eps[:, :, j] - 0.7 * eps[:, :, anchor] for j in range(3)]
        return torch.stack(frames, dim=2)

    plain = (predicted - target).square().mean()
    debiased = (phi(predicted) - phi(target)).square().mean()
    torch.testing.assert_close(terms["temporal"], plain + debiased)


def test_a_step_may_do_without_the_looks(base_over_time: VideoBase, motion_concept: Concept) -> None:
    method, sets, _ = director(base_over_time, motion_concept, skip_spatial=1.0)
    with base_over_time.attached(*sets.values()):
        for name, term in method.terms(
            base_over_time, sets, a_batch(base_over_time, 0), Draw(base_over_time.process, generator("t"))
        ):
            assert name == "temporal"
            term.backward()
    assert touched(sets["motion"]) and not touched(sets["looks-0"])


def test_processes_that_saw_other_clips_average_what_each_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one set that both taught, one that the other alone did, and one that neither did."""

    theirs = [torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([4.0, 4.0, 6.0, 6.0, 0.0, 0.0])]

    def reduce(mine: Tensor, reduction: str) -> Tensor:
        total = mine + theirs.pop(0)
        return total if reduction == "sum" else total / 2

    monkeypatch.setattr(processes, "reduce", reduce)
    both, other, mine, neither = (torch.nn.Parameter(torch.zeros(2)) for _ in range(4))
    both.grad, mine.grad = torch.full((2,), 2.0), torch.full((2,), 8.0)
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    processes.average(two, [both, other, mine, neither])
    assert both.grad.tolist() == [3, 3] and other.grad.tolist() == [3, 3] and mine.grad.tolist() == [4, 4]
    assert neither.grad is None


def test_two_clips_in_a_step_are_refused(unet3d: VideoBase, two_clips: Concept) -> None:
    method, sets, _ = director(unet3d, two_clips)
    with pytest.raises(BadConfig, match=r"one clip a step: --set train\.batch=1"):
        next(method.terms(unet3d, sets, a_batch(unet3d, 0, 1), Draw(unet3d.process, generator("t"))))


def test_motion_director_runs_from_clip_to_video(
    base_over_time: VideoBase, turn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = settings(rank=2, skip_spatial=0.0)
    one = api.learn(
        base_over_time, turn, method="motion-director", caption="a car turning", out=tmp_path / "r", settings=values
    )
    assert one.sets.keys() == {"motion"} and one.meta.sampling.inversion == 0.5
    again = api.learn(
        base_over_time,
        turn,
        method="motion-director",
        caption="a car turning",
        out=tmp_path / "s",
        settings=values,
        restart=True,
    )
    assert all(torch.equal(t, again.sets["motion"].state_dict()[n]) for n, t in one.sets["motion"].state_dict().items())
    with caplog.at_level(logging.WARNING):
        dv.generate(base_over_time, "a dog turning", concepts=[one], config=SMALL)
    assert "turn was learned to start from its clip's noise: name the clip with --inversion" in caplog.text
    video = dv.generate(base_over_time, "a dog turning", concepts=[one], config=SMALL, inversion=turn)
    assert video.made["inversion"]["strength"] == 0.5
    given = dv.generate(
        base_over_time, "a dog turning", concepts=[one], config=SMALL, inversion=turn, inversion_strength=0.2
    )
    assert given.made["inversion"]["strength"] == 0.2


def test_appearance_guides_as_it_was_learned_unless_the_recipe_says() -> None:
    motion = methods.find("dreamvideo-motion")
    assert motion().sampling().appearance == (1.0, 1.0)
    assert motion(drop_appearance=0.0).sampling().appearance == (1.0, 0.0)
    assert motion(appearance_strength=(0.4, 0.2)).sampling().appearance == (0.4, 0.2)


@pytest.mark.parametrize("method", ["lora-motion", "motion-director"])
def test_dropout_of_deltas_survives_being_cut_off(method: str, unet3d: VideoBase, turn: Path, tmp_path: Path) -> None:
    """Its randomness is made from the step's number, and global randomness is left alone."""

    def learned(out: str, *, stop: int | None = None) -> ConceptFile:
        def on_step(progress: Any) -> None:
            if progress.step == stop:
                raise KeyboardInterrupt

        values = [{"train": {"steps": 3, "save_every": 1}, "method": {"rank": 2, "dropout": 0.3}}]
        return api.learn(
            unet3d, turn, method=method, caption="a car", out=tmp_path / out, settings=values, on_step=on_step
        )

    torch.manual_seed(3)
    state = torch.get_rng_state()
    whole = learned("whole")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyboardInterrupt):
        learned("cut", stop=2)
    torch.manual_seed(4)
    resumed = learned("cut")
    ours, theirs = whole.sets["motion"].state_dict(), resumed.sets["motion"].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Dropout acted: without it the result is another.
    plain = [{"train": {"steps": 3, "save_every": 1}, "method": {"rank": 2, "dropout": 0.0}}]
    calm = api.learn(unet3d, turn, method=method, caption="a car", out=tmp_path / "calm", settings=plain)
    assert not all(torch.equal(ours[name], t) for name, t in calm.sets["motion"].state_dict().items())


NEW = (
    "lora-subject",
    "lora-motion",
    "finetune-subject",
    "finetune-motion",
    "dreamix",
    "motion-director",
    "custom-diffusion",
    "tune-a-video",
    "animatediff-subject",
    "animatediff-motion",
    "custom-crafter",
    "customize-a-video",
)


# Method -> the tiny base that it is made for, where that is another than `tiny`.
BASES = {"tune-a-video": "tiny-inflated", "animatediff-motion": "tiny-animatediff"}


@pytest.mark.parametrize("method", NEW)
def test_a_half_precision_base_is_learned_on_in_float32(method: str, dog: Path, turn: Path, tmp_path: Path) -> None:
    dv.load_base(BASES.get(method, "tiny"), device="cpu").save(tmp_path / "base")
    half = dv.load_base(str(tmp_path / "base"), dtype="bf16", device="cpu")
    kind = methods.find(method).learns
    about = {"word": "dog"} if kind == "image" else {"caption": "a car"}
    rest = {"class_count": 1} if "class_count" in methods.find(method).__dataclass_fields__ else {}
    values = [{"train": {"steps": 2, "batch": 1, "rematerialise": True}, "method": {"lr": 0.01, **rest}}]
    source = dog if kind == "image" else turn
    concept = api.learn(half, source, method=method, out=tmp_path / "r", settings=values, **about)
    for adapters in concept.sets.values():
        for tensor in adapters.state_dict().values():
            assert tensor.dtype == torch.float32 and tensor.isfinite().all()
    start = half.parts.denoiser.conv_in.weight
    assert start.dtype == torch.bfloat16
    video = dv.generate(half, "a <dog> runs" if kind == "image" else "a dog runs", concepts=[concept], config=SMALL)
    plain = dv.generate(half, "a dog runs", config=SMALL, noise_offset=video.made["noise_offset"])
    assert (video.frames != plain.frames).any()


class Joint(UNet3D):
    """A base whose blocks mix space and time."""

    def axis(self, path: str) -> Any:
        return "joint"


@pytest.mark.parametrize("method", sorted(methods.available().keys() - {"textual-inversion"}))
def test_a_base_without_such_layers_is_refused_in_one_line(
    method: str, subject_concept: Concept, motion_concept: Concept
) -> None:
    chosen = methods.find(method)()
    concept = subject_concept if chosen.learns == "image" else motion_concept
    with pytest.raises(Unsupported, match=r"mixes space and time .*: it has no '(space|time)' layers"):
        chosen.stages(Joint.tiny(0), concept, seed=0)


# -- Tune-A-Video -----------------------------------------------------------------------------------------------------


def test_queries_and_time_are_learned_with_the_attention_of_the_paper(motion_concept: Concept) -> None:
    base, method = dv.load_base("tiny-inflated", device="cpu"), methods.find("tune-a-video")()
    (stage,) = method.stages(base, motion_concept, seed=0)
    names = {site.key.partition(".transformer_blocks.0.")[2] for site in stage.learn["queries"].sites}
    assert names == {"attn1.to_q.weight", "attn2.to_q.weight"}
    sets = {name: disturb(adapters).requires_grad_(True) for name, adapters in stage.learn.items()}
    batch = a_batch(base, 0)
    with base.attached(*sets.values()):
        for name, term in method.terms(base, sets, batch, Draw(base.process, generator("t"))):
            assert name == "denoise"
            term.backward()
        x_t, t, target = Draw(base.process, generator("t")).noised(batch.latents)
        with torch.no_grad(), base.reaching("sparse-causal"):
            expected = (base.predict(x_t, t, batch.text) - target).square().mean()
        with torch.no_grad():
            plain = (base.predict(x_t, t, batch.text) - target).square().mean()
    torch.testing.assert_close(term.detach(), expected)
    assert not torch.allclose(term.detach(), plain, atol=1e-5)
    assert touched(sets["motion"]) and touched(sets["queries"])


def test_tune_a_video_runs_from_clip_to_video(
    turn: Path, two_clips: Concept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, about = dv.load_base("tiny-inflated", device="cpu"), {"method": "tune-a-video", "caption": "a car turning"}
    one = api.learn(base, turn, out=tmp_path / "r", settings=settings(), **about)
    assert one.sets.keys() == {"motion", "queries"}
    assert (one.meta.sampling.reach, one.meta.sampling.inversion) == ("sparse-causal", 1.0)
    with caplog.at_level(logging.WARNING):
        dv.generate(base, "a dog turning", concepts=[one], config=SMALL)
    assert "turn was learned to start from its clip's noise" in caplog.text
    again = load(tmp_path / "r" / "turn.safetensors")
    videos = [
        dv.generate(base, "a dog turning", concepts=[again], config=SMALL, inversion=turn, seed=seed) for seed in (0, 1)
    ]
    assert (videos[0].frames == videos[1].frames).all()  # the start is the clip's noise and nothing else
    several = api.learn(base, tmp_path / "turns", out=tmp_path / "s", settings=settings(), **about)
    assert several.meta.sampling.inversion == 0.0


# -- class images -----------------------------------------------------------------------------------------------------


def test_class_images_are_made_once_by_the_plain_base(
    unet3d: VideoBase,
    dog: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made: list[tuple[str, int, int]] = []
    generate = sample.generate

    def counted(base: VideoBase, prompt: str, composition: Any, config: SampleConfig, *, seed: int, **rest: Any):
        made.append((prompt, config.frames or 0, seed))
        assert not base._attached and not composition.concepts
        return generate(base, prompt, composition, config, seed=seed, **rest)

    monkeypatch.setattr(sample, "generate", counted)
    values = settings(class_count=3, prior_weight=0.5)
    with caplog.at_level(logging.WARNING):
        concept = api.learn(unet3d, dog, method="dreamix", word="dog", out=tmp_path / "r", settings=values)
    assert "before learning begins, the plain base makes class images of 'a dog'" in caplog.text
    assert made == [("a dog", 1, 0), ("a dog", 1, 1), ("a dog", 1, 2)]
    assert concept.meta.sampling.phrase == "sks {class}"
    rows = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert all('"prior"' in row and '"denoise"' in row for row in rows)
    again = api.learn(unet3d, dog, method="dreamix", word="dog", out=tmp_path / "r", settings=values, restart=True)
    assert len(made) == 3  # the cache outlives a restart
    ours, theirs = concept.sets["subject"].state_dict(), again.sets["subject"].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_prior_counts_by_its_weight(unet3d: VideoBase, subject_concept: Concept) -> None:
    method = methods.find("dreamix")(class_count=2, prior_weight=0.25)
    images = method.class_images(subject_concept)
    assert images == ClassImages("a dog", 2)
    data = Data(
        unet3d, subject_concept, DataConfig(), prompt=method.prompt, wants=set(), class_images=images,
        sampler=lambda prompt, number: torch.full((1, 4, 1, 4, 4), float(number + 1)),
    )  # fmt: skip
    data.encode_text()
    batch = data.batch([0, 1], Draw(unet3d.process, generator("b")), live_text=False)
    assert batch.prior is not None and batch.prior.latents.shape == (2, 4, 1, 4, 4)
    assert set(batch.prior.latents.unique().tolist()) <= {1.0, 2.0}
    assert batch.prompts == ("a sks dog", "a sks dog") and batch.prior.prompts == ("a dog", "a dog")
    assert torch.equal(batch.prior.text[0], unet3d.encode_text(["a dog"])[0])
    terms = dict(method.terms(unet3d, {}, batch, Draw(unet3d.process, generator("t"))))
    draw = Draw(unet3d.process, generator("t"))
    denoising(unet3d, batch, draw, offset=0.1)
    torch.testing.assert_close(terms["prior"], 0.25 * denoising(unet3d, batch.prior, draw, offset=0.1))


def test_class_images_without_a_maker_are_refused(unet3d: VideoBase, subject_concept: Concept) -> None:
    images = ClassImages("a dog", 2)
    with pytest.raises(BadInput, match="2 class images of 'a dog' are wanted"):
        Data(unet3d, subject_concept, DataConfig(), prompt=lambda *_: "x", wants=set(), class_images=images)


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_subject_without_a_word_is_named_by_its_phrase(unet3d: VideoBase, dog: Path, tmp_path: Path) -> None:
    subject = api.learn(unet3d, dog, method="lora-subject", word="dog", out=tmp_path / "r", settings=settings(rank=1))
    assert worded("a <dog> runs", [subject]) == "a sks dog runs"
    assert worded("a * runs", [subject]) == "a sks dog runs"
    assert worded("a sks dog runs", [subject]) == "a sks dog runs"
    frames = [
        dv.generate(unet3d, p, concepts=[subject], config=SMALL).frames for p in ("a <dog> runs", "a sks dog runs")
    ]
    assert (frames[0] == frames[1]).all()
    other = ConceptFile(replace(subject.meta, name="cat"), subject.sets)
    with pytest.raises(BadInput, match="stands for one subject, but 2 are given"):
        worded("a * runs", [subject, other])


@pytest.mark.parametrize(("word", "said"), [("dog", "a dog"), ("animal", "an animal")])
@pytest.mark.parametrize("phrase", ["{word}", "{word} {class}", "sks {class}"])
def test_plain_words_are_the_class_word_with_its_article(
    unet3d: VideoBase, dog: Path, tmp_path: Path, word: str, said: str, phrase: str
) -> None:
    learned = api.learn(unet3d, dog, method="textual-inversion", word=word, out=tmp_path / "r", settings=settings())
    sampling = replace(learned.meta.sampling, phrase=phrase)
    subject = ConceptFile(replace(learned.meta, word=word, sampling=sampling), learned.sets)
    for prompt in ("a <dog> and the <dog>", "a * and the *", worded("a <dog> and the <dog>", [subject])):
        assert plain_words(prompt, [subject]) == f"{said} and the {word}"
    assert plain_words("A <dog>", [subject]) == said.replace("a", "A", 1)
    assert plain_words("a big cat", [subject]) == "a big cat"


def test_a_subject_that_is_not_named_is_noticed(
    unet3d: VideoBase, dog: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = api.learn(unet3d, dog, method="lora-subject", word="dog", out=tmp_path / "r", settings=settings(rank=1))
    with caplog.at_level(logging.WARNING):
        assert worded("a dog runs", [subject]) == "a dog runs"
    assert "the prompt does not name <dog>" in caplog.text


@pytest.mark.parametrize(
    "method",
    ["lora-subject", "finetune-subject", "dreamix", "custom-diffusion", "animatediff-subject", "custom-crafter"],
)
def test_a_class_word_is_needed(unet3d: VideoBase, dog: Path, method: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="subject dog needs its class word"):
        api.learn(unet3d, dog, method=method, out=tmp_path / "r", settings=settings())
    assert not (tmp_path / "r").exists()


def test_captions_name_the_subject_by_its_phrase(subject_concept: Concept) -> None:
    example = subject_concept.examples[0]

    def said(caption: str) -> str:
        return subject_prompt(subject_concept, replace(example, caption=caption), "a {subject}", phrase="sks {class}")

    assert said("a * in the grass") == said("a <dog> in the grass") == "a sks dog in the grass"
    with pytest.raises(BadInput, match="must say sks dog"):
        said("something in the grass")


@pytest.mark.parametrize("text", ["a {dog}", "a {", "a {0}", "a {subject.x}"])
def test_what_cannot_be_filled_in_is_said(subject_concept: Concept, text: str) -> None:
    with pytest.raises(BadConfig, match=r"cannot be filled in: \{word\}, \{class\}, \{subject\} may stand in it"):
        subject_prompt(subject_concept, subject_concept.examples[0], text)


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def test_subject_and_motion_are_tuned_side_by_side(unet3d: VideoBase, dog: Path, turn: Path, tmp_path: Path) -> None:
    quick = [{"train": {"steps": 2, "batch": 1}, "method": {"lr": 0.01}}]
    subject = api.learn(unet3d, dog, method="finetune-subject", word="dog", out=tmp_path / "s", settings=quick)
    motion = api.learn(unet3d, turn, method="finetune-motion", caption="a car", out=tmp_path / "m", settings=quick)
    own = dict(unet3d.parts.denoiser.named_parameters())
    deltas = {**subject.sets["subject"].state_dict(), **motion.sets["motion"].state_dict()}
    assert len(deltas) == len(own)
    together = dv.generate(unet3d, "a <dog> turning", concepts=[subject, motion], config=SMALL)
    tuned = type(unet3d).tiny(0)
    with torch.no_grad():
        for name, parameter in tuned.parts.denoiser.named_parameters():
            parameter += deltas[f"{name}.delta"]
    composition = sample.Composition(noise_offset=0.1)
    latents = sample.generate(tuned, "a sks dog turning", composition, SMALL, seed=0)
    frames = ((tuned.decode(latents)[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255)
    assert (frames - torch.from_numpy(together.frames).float()).abs().max() <= 1
    plain = dv.generate(unet3d, "a sks dog turning", config=SMALL, noise_offset=0.1)
    assert (plain.frames != together.frames).any()


# -- AnimateDiff ------------------------------------------------------------------------------------------------------


def test_the_image_model_is_tuned_alone(dog: Path, tmp_path: Path) -> None:
    """Whatever the motion modules are, the same is learned, pictures of the class included."""

    def learned(out: str, *, motion: float, **values: Any) -> list[Tensor]:
        base = dv.load_base("tiny-animatediff", device="cpu")
        with torch.no_grad():
            for name, parameter in base.parts.denoiser.named_parameters():
                if ".motion_modules." in name:
                    parameter *= motion
        how = settings(class_count=1, lr=0.01, **values)
        concept = api.learn(base, dog, method="animatediff-subject", word="dog", out=tmp_path / out, settings=how)
        return list(concept.sets["subject"].state_dict().values())

    still, moving = learned("a", motion=0.0), learned("b", motion=2.0)
    assert all(tensor.any() for tensor in still)
    assert all(torch.equal(one, other) for one, other in zip(still, moving, strict=True))
    mixed = learned("c", motion=2.0, bypass_time=False)
    assert not all(torch.equal(one, other) for one, other in zip(still, mixed, strict=True))


def test_pictures_are_mirrored_in_every_second_draw(unet3d: VideoBase, subject_concept: Concept) -> None:
    kind = methods.find("animatediff-subject")
    for method, views in ((kind(), [View(), View(flip=True)]), (kind(flip=False), [View()])):
        (stage,) = method.stages(unet3d, subject_concept, seed=0)
        assert list(stage.views) == views
    assert kind().class_images(subject_concept) == ClassImages("photo of a dog", 8, bypass_time=True)
    assert kind().prompt(subject_concept, subject_concept.examples[0]) == "photo of a sks dog"


def test_image_model_and_motion_modules_stand_side_by_side(dog: Path, turn: Path, tmp_path: Path) -> None:
    base = dv.load_base("tiny-animatediff", device="cpu")
    subject = api.learn(
        base, dog, method="animatediff-subject", word="dog", out=tmp_path / "s", settings=settings(class_count=1)
    )
    motion = api.learn(
        base, turn, method="animatediff-motion", caption="a car", out=tmp_path / "m", settings=settings(lr=0.01)
    )
    names = [set(concept.sets[role].state_dict()) for concept, role in ((subject, "subject"), (motion, "motion"))]
    assert all(".motion_modules." in name for name in names[1])
    own = {f"{name}.delta" for name, _ in base.parts.denoiser.named_parameters()}
    assert not names[0] & names[1] and names[0] | names[1] == own
    together, alone = (
        dv.generate(base, "a <dog> turning", concepts=concepts, config=SMALL)
        for concepts in ([subject, motion], [subject])
    )
    assert (together.frames != alone.frames).any()


# -- Custom Diffusion -------------------------------------------------------------------------------------------------


def test_views_are_drawn_as_the_released_code_draws_them() -> None:
    views = random_views(3000, generator("views"), flip=0.5)
    near = [view for view in views if view.scale > 1]
    far = [view for view in views if view.scale < 1]
    assert 0.30 < len(near) / 3000 < 0.37
    # Of the rest, scales in [1/3, 0.6) out of [1/3, 1] are shown smaller.
    assert 0.36 < len(far) / (3000 - len(near)) < 0.44
    assert all(1.2 <= view.scale <= 1.4 for view in near) and all(1 / 3 <= view.scale < 0.6 for view in far)
    assert {view.said("dog") for view in near} == {"zoomed in dog", "close up dog"}
    assert {view.said("dog") for view in far} == {"a far away dog", "very small dog"}
    assert {view.said("dog") for view in views if view.scale == 1} == {"dog"}
    assert 0.45 < sum(view.flip for view in views) / 3000 < 0.55


def test_a_view_shows_the_picture_smaller_larger_and_mirrored() -> None:
    pixels = torch.ones(1, 3, 1, 32, 32)
    pixels[..., :16] = -1
    small = View(0.5, (0.0, 1.0)).show(pixels)
    assert small[..., :16, 16:].abs().min() > 0.1 and not small[..., 16:, :].any() and not small[..., :16].any()
    assert small[0, 0, 0, 8, 17] < 0 < small[0, 0, 0, 8, 30]
    assert View(flip=True).show(pixels)[0, 0, 0, 0, 0] == 1
    left, right = (View(1.4, (0.5, place)).show(pixels) for place in (0.0, 1.0))
    assert left.shape == right.shape == pixels.shape
    assert (left < 0).sum() > (left > 0).sum() and (right > 0).sum() > (right < 0).sum()


def test_only_what_is_picture_counts() -> None:
    seen = View(0.5, (0.0, 1.0)).seen(8, 8, pixels=4)
    expected = torch.zeros(8, 8)
    expected[1:3, 5:7] = 1  # latents 0-3 and 4-7 are picture, less one on each side
    assert seen is not None and torch.equal(seen[0, 0], expected)
    assert View().seen(8, 8, pixels=4) is None and View(1.3).seen(8, 8, pixels=4) is None


def test_a_loss_by_area_does_not_shrink_with_the_mask(unet3d: VideoBase) -> None:
    batch = a_batch(unet3d, 0)
    mask = torch.zeros(1, 1, 3, 4, 4)
    mask[..., :2] = 1
    whole, half = batch, replace(batch, mask=mask)

    def loss(batch: Batch, **how: Any) -> float:
        return float(denoising(unet3d, batch, Draw(unet3d.process, generator("l")), offset=0.0, **how))

    assert loss(half, by_area=True) == pytest.approx(2 * loss(half))
    assert loss(replace(batch, mask=torch.ones_like(mask)), by_area=True) == pytest.approx(loss(whole))


@pytest.fixture
def custom(unet3d: VideoBase, dog: Path, tmp_path: Path) -> list[ConceptFile]:
    quick = [{"train": {"steps": 3, "batch": 2}, "method": {"lr": 0.02, "shown": 3, "class_count": 1}}]
    return [
        api.learn(unet3d, dog, method="custom-diffusion", name=name, word=word, out=tmp_path / name, settings=quick)
        for name, word in (("rex", "dog"), ("tom", "cat"))
    ]


def test_custom_diffusion_runs_from_pictures_to_video(unet3d: VideoBase, custom: list[ConceptFile]) -> None:
    rex, _ = custom
    assert rex.sets.keys() == {"subject", "word"}
    assert all(tensor.any() for tensor in rex.sets["subject"].state_dict().values())
    assert worded("a <rex> runs", [rex]) == "a <rex> dog runs"
    assert worded("a <rex> dog runs", [rex]) == "a <rex> dog runs"
    start = unet3d.token_vectors("ktn").mean(dim=0)
    (vectors,) = rex.sets["word"].state_dict().values()
    assert not torch.equal(vectors[0], start) and torch.allclose(vectors[0], start, atol=0.1)
    dv.generate(unet3d, "a * runs", concepts=[rex], config=SMALL)


CAPTIONS = [
    f"{a} {b} of a {c}" for a in ("a photo", "two drawings") for b in ("x", "in red") for c in ("cat", "big house")
]


def test_merging_is_the_closed_form(unet3d: VideoBase, custom: list[ConceptFile]) -> None:
    """W' gives every concept's own keys for its phrase, and of all such the one that changes the captions least."""
    one = merged(unet3d, custom, CAPTIONS)
    assert one.meta.name == "rex-tom" and one.sets.keys() == {"subject", "word-rex", "word-tom"}
    words = [file.sets["word"] for file in custom]
    with unet3d.attached(*words):
        others = unet3d.encode_text(CAPTIONS).flatten(0, 1).double()
        # "<rex> dog" on a byte tokenizer: the word's vector and three letters, after the start token.
        states = [unet3d.encode_text([p])[0, 1:5].double() for p in ("<rex> dog", "<tom> cat")]
    for name, tensor in one.sets["subject"].state_dict().items():
        change = tensor.double()
        for file, keys in zip(custom, states, strict=True):
            own = file.sets["subject"].state_dict()[name].double()
            torch.testing.assert_close(keys @ change.T, keys @ own.T, atol=2e-3, rtol=1e-2)
        # Least change: a move that keeps the phrases' keys makes it no smaller.
        keys = torch.cat(states)
        away = randn(*change.shape, name=name).double()
        away -= away @ torch.linalg.pinv(keys) @ keys
        near, gram = (change @ others.T).square().sum(), 2 * (change @ others.T * (away @ others.T)).sum()
        assert abs(gram) < 1e-2 * near.sqrt() * (away @ others.T).norm()
    video = dv.generate(unet3d, "a <rex> dog and a <tom> cat", concepts=[one], config=SMALL)
    assert video.frames.shape[0] == 2


def test_merging_does_not_ask_how_a_base_keeps_its_weights(unet3d: VideoBase, custom: list[ConceptFile]) -> None:
    before = merged(unet3d, custom, CAPTIONS).sets["subject"].state_dict()
    unet3d.store("int8")
    after = merged(unet3d, custom, CAPTIONS).sets["subject"].state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_merging_refuses_what_it_cannot_merge(
    unet3d: VideoBase, custom: list[ConceptFile], dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="two concepts or more"):
        merged(unet3d, custom[:1], CAPTIONS)
    encode = unet3d.encode_text
    with monkeypatch.context() as patched:
        # Captions that all say the same, in one state.
        narrow = {"x": encode(["x"])[:, :1]}
        patched.setattr(unet3d, "encode_text", lambda prompts: narrow.get(prompts[0], encode(prompts)))
        with pytest.raises(BadInput, match="1 captions span too little"):
            merged(unet3d, custom, ["x"])
    lora = api.learn(unet3d, dog, method="lora-subject", word="dog", out=tmp_path / "l", settings=settings(rank=1))
    with pytest.raises(BadInput, match="what custom-diffusion learned"):
        merged(unet3d, [*custom, lora], CAPTIONS)


def test_a_merged_concept_survives_its_file(unet3d: VideoBase, custom: list[ConceptFile], tmp_path: Path) -> None:
    """Both words stand on one site: the file tells them apart by the names of their sets."""
    one = merged(unet3d, custom, CAPTIONS)
    save(tmp_path / "both.safetensors", one)
    again = load(tmp_path / "both.safetensors")
    assert {a.kind.name for a in again.sets.values() if isinstance(a.kind, Word)} == {"rex", "tom"}
    for name, adapters in one.sets.items():
        state = again.sets[name].state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in adapters.state_dict().items())


# -- DreamVideo -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "feed_forward"), [("serial", "parallel"), ("parallel", "serial")])
def test_feed_forward_adapters_have_a_placement_of_their_own(
    unet3d: VideoBase, motion_concept: Concept, attention: Any, feed_forward: Any
) -> None:
    def sets(**values: Any) -> dict[str, AdapterSet]:
        method = methods.find("dreamvideo-motion")(condition=False, **values)
        return dict(method.stages(unet3d, motion_concept, seed=0)[0].learn)

    mixed = sets(placement=attention, ff_placement=feed_forward)
    placed = {site: adapters.kind.placement for adapters in mixed.values() for site in adapters.sites}
    (whole,) = sets(placement=attention).values()
    assert placed == {site: feed_forward if site.port == "ff" else attention for site in whole.sites}
    assert set(placed.values()) == {"parallel", "serial"}
    assert sets(placement=attention, ff_placement=attention).keys() == {"motion"}
    assert sets(ports=("ff",), ff_placement="serial")["motion"].kind.serial
