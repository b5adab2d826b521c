"""Video-P2P: alignment, control of attention, null-text inversion, the edit whole and what it keeps."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from test_edits import ended
from torch import Tensor

import dreamvideo as dv
from dreamvideo import bases, config, editing, media, recipe
from dreamvideo.adapters.attention import Change
from dreamvideo.adapters.file import load
from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import generator
from dreamvideo.edits import null_text
from dreamvideo.edits.edit import Task
from dreamvideo.edits.null_text import Inverted
from dreamvideo.edits.prompt_to_prompt import PromptToPrompt, align, weighted
from dreamvideo.edits.video_p2p import VideoP2P
from dreamvideo.errors import BadInput, Interrupted, Unsupported
from dreamvideo.sample import SampleConfig, denoise, trajectory

SMALL = VideoP2P(steps=3, lr=1e-3, sampling_steps=4, null_updates=4, null_lr=0.1, rematerialise=False, heads=4)
FRAMES = 3


@pytest.fixture(scope="module")
def base() -> VideoBase:
    return bases.load("tiny-inflated")


def noise(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(name))


@pytest.fixture(scope="module")
def task() -> Task:
    frames = noise(FRAMES, 3, 16, 16, name="clip").sigmoid()
    return Task(frames=(frames * 255).round() / 255, caption="a cat runs", prompt="a dog runs")


# -- attention under control ------------------------------------------------------------------------------------------


@torch.no_grad()
def said(base: VideoBase) -> Tensor:
    x = noise(2, 4, FRAMES, 4, 4)
    return base.predict(x, torch.tensor([40, 800]), base.encode_text(["a dog", ""]))


@pytest.mark.parametrize("family", ["inflated", "unet3d", "animatediff"])
def test_attention_that_is_only_looked_at_says_the_same(family: str) -> None:
    base = bases.available()[family].tiny(0)
    before, seen = said(base), []

    def look(port: str, queries: int) -> Change:
        def change(probabilities: Tensor) -> Tensor:
            assert probabilities.shape[2] == queries
            assert torch.allclose(probabilities.sum(dim=-1), torch.ones(()), atol=1e-5)
            seen.append(port)
            return probabilities

        return change

    with base.attending(look):
        assert torch.allclose(said(base), before, atol=1e-5)
    assert set(seen) == {"attn1", "attn2"}
    with base.attending(lambda port, queries: None):
        assert torch.equal(said(base), before)
    with base.attending(lambda port, queries: torch.zeros_like if port == "attn2" else None):
        assert not torch.allclose(said(base), before, atol=1e-3)
    assert torch.equal(said(base), before)


# -- the alignment of two prompts -------------------------------------------------------------------------------------


def test_words_take_the_attention_of_those_in_their_place(base: VideoBase) -> None:
    # A tiny base's tokens are letters: a=1, cat=2..4, runs=5..8 and a=1, horse=2..6, runs=7..10.
    found = align(base.parts.tokenizer, "a cat runs", "a horse runs", swap=True)
    expected = torch.zeros(77, 77)
    expected[0, 0] = expected[1, 1] = 1
    expected[2:7, 2:5] = 1 / 5
    for place in range(77 - 7):  # the last word, the end and what fills up, all moved by two
        if 7 + place < 77:
            expected[7 + place, 5 + place] = 1
    assert torch.equal(found.taken, expected)
    assert found.differs[0].nonzero().flatten().tolist() == [2, 3, 4]
    assert found.differs[1].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    # A caption's attention is handed on whole.
    attention = noise(5, 77).softmax(dim=-1)
    assert torch.allclose((attention @ found.taken.T).sum(dim=-1), attention[:, :75].sum(dim=-1), atol=1e-5)


def test_words_of_as_many_tokens_take_it_one_by_one(base: VideoBase) -> None:
    same = align(base.parts.tokenizer, "a cat runs", "a dog runs", swap=True)
    assert torch.equal(same.taken, torch.eye(77))
    assert same.differs.sum(dim=1).tolist() == [3, 3]
    assert align(base.parts.tokenizer, "a cat", "a cat", swap=False).differs.sum() == 0


def test_words_that_are_added_or_refined_look_for_themselves(base: VideoBase) -> None:
    added = align(base.parts.tokenizer, "a cat runs", "a big cat runs", swap=True)
    assert added.taken[2:5].any() == torch.tensor(False)
    assert torch.equal(added.taken[5:12, 2:9], torch.eye(7))
    assert (added.differs[0].sum(), added.differs[1].nonzero().flatten().tolist()) == (0, [2, 3, 4])
    refined = align(base.parts.tokenizer, "a cat runs", "a dog runs", swap=False)
    assert refined.taken[2:5].any() == torch.tensor(False)
    gone = align(base.parts.tokenizer, "a big cat runs", "a cat runs", swap=True)
    assert torch.equal(gone.taken[2:9, 5:12], torch.eye(7))


def test_words_are_weighed_by_name_and_too_long_texts_refused(base: VideoBase) -> None:
    weights = weighted(base.parts.tokenizer, "a cat, a cat", {"cat": 2.0, "cat,": 3.0})
    assert weights[:11].tolist() == [1, 1, 3, 3, 3, 3, 1, 2, 2, 2, 1]
    with pytest.raises(BadInput, match="no word 'dog'"):
        weighted(base.parts.tokenizer, "a cat", {"dog": 2.0})
    with pytest.raises(BadInput, match="75 tokens at most"):
        align(base.parts.tokenizer, "a cat", "cat " * 26, swap=True)


# -- Prompt-to-Prompt -------------------------------------------------------------------------------------------------


def control(base: VideoBase, prompt: str = "a dog runs", **changes: Any) -> PromptToPrompt:
    task = Task(frames=torch.zeros(FRAMES, 3, 16, 16), caption="a cat runs", prompt=prompt)
    settings = {"cross_replace": 1.0, "self_replace": 1.0, "mask_threshold": 0.0}
    return replace(SMALL, **settings | changes)._controller(base, task)


def test_the_conditional_branch_of_the_edit_takes_what_it_should(base: VideoBase) -> None:
    # (unconditional and conditional) x (caption and prompt) x frames, of 2 heads
    loose = noise(2 * 2 * FRAMES, 2, 16, 77).softmax(dim=-1)
    before = loose.clone().unflatten(0, (2, 2, FRAMES))
    controller = control(base, "a big dog runs", word_weights={"runs": 2.0}, word_swap=False)
    for step, taken in ((0, True), (3, True), (4, False)):
        after = controller.attention(step, "attn2", 16)(loose).unflatten(0, (2, 2, FRAMES))
        assert torch.equal(after[0], before[0]) and torch.equal(after[1, 0], before[1, 0])
        wanted = before[1, 1].clone()
        if taken:
            wanted[..., :2] = before[1, 0][..., :2]  # the start and "a"
            wanted[..., 8:12] = 2 * before[1, 0][..., 5:9]  # "runs"
            wanted[..., 12:] = before[1, 0][..., 9:-3]
        assert torch.allclose(after[1, 1], wanted)
    own = loose[..., :16]
    after = controller.attention(0, "attn1", 16)(own).unflatten(0, (2, 2, FRAMES))
    assert torch.equal(after[1, 1], own.unflatten(0, (2, 2, FRAMES))[1, 0])
    assert torch.equal(after[0], own.unflatten(0, (2, 2, FRAMES))[0])
    assert controller.attention(4, "attn1", 16) is None
    assert controller.attention(0, "attn1", 33**2) is None


def test_videos_differ_only_where_the_words_are(base: VideoBase) -> None:
    controller = control(base, mask_threshold=0.5, mask_from=0.5)
    x = noise(2, 4, FRAMES, 8, 8)
    assert torch.equal(controller.latents(3, x), x)  # nothing has been looked at
    loose = torch.full((2 * 2 * FRAMES, 1, 16, 77), 1e-3).unflatten(0, (2, 2, FRAMES))
    loose[1, 0, :, :, 0, 2:5] = 0.2  # the cat is in the corner above, left
    loose[1, 1, :, :, 15, 2:5] = 0.1  # the dog in that below, right
    controller.attention(9, "attn2", 16)(loose.flatten(0, 2))
    # A coarser map counts for nothing beside it, nor does a finer one than is wanted.
    controller.attention(9, "attn2", 4)(noise(2 * 2 * FRAMES, 1, 4, 77).softmax(dim=-1))
    assert controller.attention(9, "attn2", 17**2) is None
    assert torch.equal(controller.latents(1, x), x)
    after = controller.latents(2, x)
    free = torch.zeros(8, 8, dtype=torch.bool)
    free[:4, :4] = free[4:, 4:] = True  # two cells of four, spread by one, twice as large
    assert torch.equal(after[0], x[0])
    assert torch.equal(after[1], torch.where(free, x[1], x[0]))


def test_one_words_mask_can_be_named(base: VideoBase) -> None:
    named = control(base, mask_words=("runs", "a"))
    assert [row.nonzero().flatten().tolist() for row in named.blend] == [[5, 6, 7, 8], [1]]
    with pytest.raises(BadInput, match="no word 'horse'"):
        control(base, mask_words=("cat", "horse"))


@torch.no_grad()
def both(base: VideoBase, controller: PromptToPrompt | None, *prompts: str) -> Tensor:
    """Two videos from one start."""
    text = base.encode_text(["", "", *prompts])
    settings = SampleConfig(steps=4, guidance=3.0).filled(base.defaults)
    start = noise(1, 4, FRAMES, 4, 4).repeat(2, 1, 1, 1, 1)
    _, x = ended(denoise(base, start, lambda step, x: text, settings, controller=controller))
    return x


def test_the_same_prompt_gives_the_same_video(base: VideoBase) -> None:
    same = both(base, control(base, "a cat runs"), "a cat runs", "a cat runs")
    assert torch.equal(same[0], same[1])
    free, held = both(base, None, "a cat runs", "a dog runs"), both(base, control(base), "a cat runs", "a dog runs")
    assert torch.allclose(free[0], held[0], atol=1e-4)  # the caption's video is not touched
    assert (held[1] - free[1]).abs().mean() > 1e-3 and (held[1] - held[0]).abs().mean() > 1e-3


# -- null-text inversion ----------------------------------------------------------------------------------------------


def test_a_trajectory_goes_up_the_levels_that_ddim_comes_down(base: VideoBase) -> None:
    """As null-text inversion writes it: eps of (x, t) leads from the level below t to t."""
    latents, text = noise(1, 4, FRAMES, 4, 4), base.encode_text(["a cat"]).detach()
    found = [*trajectory(base, latents, text, steps=4)]
    x, abar = latents, base.process.abar.float()
    levels = [abar[0], abar[1], abar[251], abar[501], abar[751]]
    with torch.no_grad():
        for number, t in enumerate((1, 251, 501, 751)):
            below, here = levels[number], levels[number + 1]
            eps = base.predict(x, torch.tensor([t]), text)
            x = here.sqrt() * (x - (1 - below).sqrt() * eps) / below.sqrt() + (1 - here).sqrt() * eps
            assert torch.allclose(found[number], x, atol=1e-4)
    scheduler = DDIMScheduler.from_config(base.parts.scheduler.config)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]


def test_null_texts_lead_back_to_the_clip(base: VideoBase) -> None:
    latents = noise(1, 4, FRAMES, 4, 4)
    caption, empty = base.encode_text(["a cat runs", ""]).detach().split(1)
    settings = SampleConfig(steps=4, guidance=7.5).filled(base.defaults)
    _, known = ended(null_text.inverted(base, latents, caption, steps=4))
    start = known.way[-1]

    def far(texts: list[Tensor]) -> float:
        work = denoise(base, start, lambda step, x: torch.cat([texts[step], caption]), settings)
        return float((ended(work)[1] - latents).square().mean())

    told, _ = ended(null_text.tuned(base, known, empty, caption, settings, updates=10, lr=0.05))
    assert [(p.stage, p.step) for p in told] == [("null text", step) for step in range(1, 5)]
    assert [text.shape for text in known.empty] == [empty.shape] * 4  # one for all frames
    assert far(known.empty) < 0.5 * far([empty] * 4)
    # Going on finds what was found at once.
    again = Inverted(known.way, known.empty[:2])
    assert len(ended(null_text.tuned(base, again, empty, caption, settings, updates=10, lr=0.05))[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(again.empty, known.empty, strict=True))


# -- the edit ---------------------------------------------------------------------------------------------------------


def edited(edit: VideoP2P, base: VideoBase, task: Task) -> tuple[list[str], editing.Edited]:
    """The stages that were gone through, and the edit."""
    told: list[str] = []
    result = editing.perform(edit, base, task, seed=0, on_step=lambda progress: told.append(progress.stage))
    return told, result


def test_it_edits_and_keeps_what_belongs_to_the_clip(base: VideoBase, task: Task, tmp_path: Path) -> None:
    kept = replace(task, keep=tmp_path)
    told, fast = edited(replace(SMALL, fast=True), base, kept)
    assert told == ["motion"] * 3 + ["inversion"] * 4 + ["sampling"] * 4
    told, slow = edited(SMALL, base, kept)
    assert told == ["null text"] * 4 + ["sampling"] * 4
    assert slow.measured.keys() == {"clip_psnr"} and slow.measured != fast.measured
    (learned,) = tmp_path.glob("*/learned/clip.safetensors")
    assert load(learned).meta.sampling.reach == "first"
    assert slow.frames.shape == task.frames.shape and slow.frames.min() >= 0 and slow.frames.max() <= 1
    told, other = edited(SMALL, base, replace(kept, prompt="a cat flies"))
    assert told == ["sampling"] * 4
    assert other.measured == slow.measured and not torch.equal(other.frames, slow.frames)
    assert len([*tmp_path.iterdir()]) == 1
    # Another caption, clip or way to learn it is another matter; what is found in no time is not found otherwise.
    assert edited(SMALL, base, replace(kept, caption="a cat sits"))[0][0] == "motion"
    assert edited(replace(SMALL, lr=1e-4), base, kept)[0][0] == "motion"
    assert edited(replace(SMALL, guidance=3.0), base, kept)[0][0] == "inversion"
    alone = edited(SMALL, base, task)[1]
    assert torch.equal(alone.frames, slow.frames)
    assert base._attached == []


@pytest.mark.parametrize(("stage", "step"), [("motion", 2), ("inversion", 2), ("null text", 2), ("sampling", 1)])
def test_left_it_goes_on_as_if_never_left(stage: str, step: int, base: VideoBase, task: Task, tmp_path: Path) -> None:
    kept, work = replace(task, keep=tmp_path), SMALL.edited(base, replace(task, keep=tmp_path), seed=0)
    for progress in work:
        if (progress.stage, progress.step) == (stage, step):
            work.close()
    assert base._attached == [] and base.givens.reach == "frame"
    told, again = edited(SMALL, base, kept)
    assert told.count("motion") == (3 if stage == "motion" else 0)
    assert told.count("null text") == {"null text": 2, "sampling": 0}.get(stage, 4)
    assert torch.equal(again.frames, edited(SMALL, base, task)[1].frames)


def test_a_signal_stops_it_and_says_what_is_kept(base: VideoBase, task: Task, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.stage == "null text":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=f"step 1 of 4 of stage null text; {tmp_path} has what was done"):
        editing.perform(SMALL, base, replace(task, keep=tmp_path), seed=0, on_step=stop)
    assert edited(SMALL, base, replace(task, keep=tmp_path))[0].count("null text") == 3


def test_other_bases_are_refused_before_anything_is_done(task: Task, tmp_path: Path) -> None:
    for name in sorted(bases.available().keys() - {"inflated"}):
        with pytest.raises(Unsupported, match="needs an image model run on frames") as caught:
            edited(SMALL, bases.available()[name].tiny(0), replace(task, keep=tmp_path))
        assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []


def test_the_defaults_are_the_papers(base: VideoBase) -> None:
    assert recipe.recipes("video-p2p") == ("emojiworld-image", "paper")
    resolved = editing.resolve("video-p2p", base, recipe="paper")
    assert resolved.edit == VideoP2P()
    assert config.plain(resolved.clip) == {"frames": 8, "height": 512, "width": 512, "fps": base.defaults.fps}


def test_the_command(run: Any, task: Task, tmp_path: Path) -> None:
    frames = (task.frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    media.write_video(tmp_path / "cat.mp4", frames, fps=8)
    config.write_toml(tmp_path / "small.toml", {"edit": config.plain(SMALL)})
    common = [
        "edit",
        "cat.mp4",
        "a dog runs",
        "--caption",
        "a cat runs",
        "--method",
        "video-p2p",
        "--recipe",
        "small.toml",
    ]
    code, _, error = run(*common, "--base", "tiny-inflated", "--set", "edit.word_weights.dog=2", "--out", "dog.webp")
    assert code == 0, error
    again = dv.regenerate("dog.webp.json")
    assert again.made["edit"]["word_weights"] == {"dog": 2}
    assert (again.frames == media.read_clip(tmp_path / "dog.webp", size=(16, 16)).frames).all()
    code, _, error = run(*common, "--base", "tiny")
    lines = [line for line in error.splitlines() if line.startswith("dreamvideo: ")]
    assert (code, len(lines)) == (2, 1) and "not tiny" in lines[0]
    assert "video-p2p" in run("edits")[1]
