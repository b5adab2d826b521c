"""Examples -> batches: order, cache, masks, windows, text."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dreamvideo import bases, media
from dreamvideo.adapters.words import learned_word
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, read_concept
from dreamvideo.data import Batch, Data, DataConfig, order, to_pixels
from dreamvideo.diffusion import Draw, generator
from dreamvideo.views import View

SIZE = (16, 16)
LATENT = (4, 4)


@pytest.fixture(scope="module")
def tiny() -> VideoBase:
    """One base for all tests here; they leave it as it was."""
    return bases.load("tiny")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The posterior's mean instead of a sample."""
    monkeypatch.setattr(Draw, "posterior", lambda draw, mean, std: mean)


def data_of(base: VideoBase, concept: Concept, *wants: Any, cache: Path | None = None, **config: Any) -> Data:
    prompt = "a picture"
    data = Data(
        base,
        concept,
        DataConfig(**config),
        prompt=lambda concept, example: example.caption or prompt,
        wants=frozenset(wants),
        cache=cache,
    )
    data.encode_text()
    return data


def batch_of(base: VideoBase, data: Data, numbers: Sequence[int], *names: int | str, live_text: bool = False) -> Batch:
    return data.batch(numbers, Draw(base.process, generator("batch", *names)), live_text=live_text)


def save_clip(path: Path, levels: Sequence[int], *, fps: float = 8) -> Path:
    """A lossless clip whose frame i is all of grey `levels[i]`."""
    media.write_video(path, np.stack([np.full((*SIZE, 3), level, np.uint8) for level in levels]), fps=fps)
    return path


def encoded(base: VideoBase, levels: Sequence[int | None]) -> Tensor:
    """Latents (C, F, h, w) of frames of these greys; None is the mid-grey of a missing frame."""
    frames = [torch.zeros(1, 3, 1, *SIZE) if v is None else torch.full((1, 3, 1, *SIZE), v / 127.5 - 1) for v in levels]
    return base.encode_video(torch.cat(frames, dim=2))[0][0]


# -- order ------------------------------------------------------------------------------------------------------------


def batches(count: int, size: int, number: int, *, seed: int = 0, **config: Any) -> list[list[int]]:
    return list(islice(order(count, size, seed=seed, config=DataConfig(**config)), number))


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 2), (6, 4), (5, 5), (2, 7), (9, 1)])
def test_every_example_comes_once_an_epoch(count: int, size: int) -> None:
    drawn = [number for batch in batches(count, size, 3 * count) for number in batch]
    assert all(len(batch) == size for batch in batches(count, size, 3 * count))
    epochs = [drawn[start : start + count] for start in range(0, len(drawn), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_order_is_a_function_of_its_arguments() -> None:
    torch.manual_seed(1)
    first = batches(20, 3, 30)
    torch.manual_seed(2)
    assert batches(20, 3, 30) == first
    assert batches(20, 3, 30, seed=1) != first
    epoch = [number for batch in batches(20, 20, 2) for number in batch]
    assert epoch[:20] != epoch[20:]


def test_order_of_the_files_has_a_smaller_last_batch() -> None:
    assert batches(6, 4, 5, order="file") == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3], [4, 5], [0, 1, 2, 3]]
    assert batches(3, 4, 2, order="file", seed=9) == [[0, 1, 2], [0, 1, 2]]


def test_pixels_are_between_minus_one_and_one() -> None:
    pixels = to_pixels(np.array([0, 255, 51], np.uint8).reshape(1, 1, 3, 1).repeat(3, axis=3))
    assert pixels.shape == (1, 3, 1, 1, 3)
    torch.testing.assert_close(pixels[0, 0, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


# -- cache ------------------------------------------------------------------------------------------------------------


def items_of(data: Data) -> Iterator[Tensor]:
    for (item,) in (views.values() for views in data.items):
        yield from (item.mean, item.std)
        if item.appearance is not None:
            yield item.appearance


def test_cache_holds_what_would_be_encoded_and_is_used(
    tiny: VideoBase, motion_concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = data_of(tiny, motion_concept, "appearance")
    first = data_of(tiny, motion_concept, "appearance", cache=tmp_path)

    def refuse(*args: object) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "encode_video", refuse)
        again = data_of(tiny, motion_concept, "appearance", cache=tmp_path)
        with pytest.raises(AssertionError, match="encoded again"):
            data_of(tiny, motion_concept, "appearance")
    for a, b, c in zip(items_of(fresh), items_of(first), items_of(again), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_other_sizes_and_wishes_do_not_find_the_cache(tiny: VideoBase, motion_concept: Concept, tmp_path: Path) -> None:
    data_of(tiny, motion_concept, cache=tmp_path)
    tall = data_of(tiny, motion_concept, cache=tmp_path, height=24)
    guided = data_of(tiny, motion_concept, "appearance", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert tall.items[0][View()].mean.shape[-2:] == (6, 4)
    assert guided.items[0][View()].appearance is not None


def test_other_base_does_not_find_the_cache(tiny: VideoBase, motion_concept: Concept, tmp_path: Path) -> None:
    other = type(tiny).tiny(1)
    first = data_of(tiny, motion_concept, cache=tmp_path)
    second = data_of(other, motion_concept, cache=tmp_path)
    assert not torch.equal(first.items[0][View()].mean, second.items[0][View()].mean)
    assert torch.equal(second.items[0][View()].mean, data_of(other, motion_concept).items[0][View()].mean)


def test_other_image_encoder_does_not_find_the_cache(
    tiny: VideoBase, motion_concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_of(tiny, motion_concept, "appearance", cache=tmp_path)
    encoder = type(tiny).tiny(1).parts.image_encoder
    monkeypatch.setattr(tiny, "parts", replace(tiny.parts, image_encoder=encoder))
    monkeypatch.setattr(tiny, "origin", replace(tiny.origin, image_encoder="another"))
    cached = data_of(tiny, motion_concept, "appearance", cache=tmp_path)
    assert torch.equal(
        cached.items[0][View()].appearance, data_of(tiny, motion_concept, "appearance").items[0][View()].appearance
    )


# -- the posterior ----------------------------------------------------------------------------------------------------


def test_latents_sample_the_posterior(tiny: VideoBase, subject_concept: Concept) -> None:
    data = data_of(tiny, subject_concept)
    drawn = batch_of(tiny, data, [1] * 4000).latents
    assert drawn.shape == (4000, 4, 1, *LATENT)
    mean, std = data.items[1][View()].mean[:, :1], data.items[1][View()].std[:, :1]
    assert std.min() > 0
    assert ((drawn.mean(0) - mean) / std).abs().max() < 5 / 4000**0.5
    assert (drawn.std(0) / std - 1).abs().max() < 0.06


def test_mean_is_the_picture_cropped_as_the_official_code_does(
    tiny: VideoBase, subject_concept: Concept, exact: None
) -> None:
    latents = batch_of(tiny, data_of(tiny, subject_concept), [2, 0]).latents
    for row, number in enumerate((2, 0)):
        pixels = media.crop_wide(media.read_image(subject_concept.examples[number].path).pixels, SIZE)
        torch.testing.assert_close(latents[row], tiny.encode_video(to_pixels(pixels[None]))[0][0])


# -- masks ------------------------------------------------------------------------------------------------------------


def test_masks_reach_the_batch_at_latent_size(tiny: VideoBase, tmp_path: Path) -> None:
    # Wider than high: what the crop takes of the picture it takes of the mask.
    columns = (range(8, 16), range(12, 20))
    (tmp_path / "masks").mkdir()
    for number, subject in enumerate(columns):
        mask = np.zeros((16, 32), np.uint8)
        mask[:, subject] = 255
        Image.fromarray(mask).convert("RGB").save(tmp_path / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    data = data_of(tiny, read_concept(tmp_path, kind="image"), "mask")
    mask = batch_of(tiny, data, [1, 0]).mask
    assert mask is not None
    assert mask.shape == (2, 1, 1, *LATENT)
    for row, inside in zip(mask[:, 0, 0], ([0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]), strict=True):
        assert torch.equal(row, torch.tensor(inside).expand(LATENT))


def test_masks_are_shown_as_the_pictures_are(tiny: VideoBase, tmp_path: Path) -> None:
    """White on black, its mask the white: mirrored, smaller and enlarged, one covers the other."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[8:40, :24] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "masks" / "a.png")
    concept = read_concept(tmp_path, kind="image", word="dog")
    shown: list[Tensor] = []

    class Watched(View):
        def show(self, pixels: Tensor) -> Tensor:
            shown.append(super().show(pixels))
            return shown[-1]

    views = [Watched(flip=True), Watched(0.5, (1.0, 1.0)), Watched(1.5, (0.0, 0.0)), Watched()]
    Data(tiny, concept, DataConfig(height=64, width=64), prompt=lambda *_: "x", wants={"mask"}, views=views)
    for picture, mask in zip(shown[::2], shown[1::2], strict=True):
        bright = torch.nn.functional.avg_pool2d((picture[:, :1, 0] > 0.5).float(), 4)
        assert mask.any() and (mask[:, 0].round() - bright).abs().mean() < 0.05


def test_masks_are_not_made_where_nobody_wants_them(tiny: VideoBase, subject_concept: Concept) -> None:
    assert batch_of(tiny, data_of(tiny, subject_concept), [0]).mask is None


@pytest.fixture
def half_masked(tmp_path: Path) -> Concept:
    """A picture with a mask of its own transparency, and one without any."""
    rgba = np.full((*SIZE, 4), 200, np.uint8)
    rgba[:, :8, 3], rgba[:, 8:, 3] = 255, 0
    Image.fromarray(rgba).save(tmp_path / "0.png")
    Image.fromarray(rgba[..., :3]).save(tmp_path / "1.png")
    return read_concept(tmp_path, kind="image")


def test_missing_mask_beside_others_counts_as_ones(tiny: VideoBase, half_masked: Concept) -> None:
    data = data_of(tiny, half_masked, "mask")
    for numbers in ([0, 1], [1, 0]):
        mask = batch_of(tiny, data, numbers).mask
        assert mask is not None
        transparent, opaque = mask[numbers.index(0), 0, 0], mask[numbers.index(1), 0, 0]
        assert torch.equal(opaque, torch.ones(LATENT))
        assert torch.equal(transparent, torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(LATENT))
    assert batch_of(tiny, data, [1, 1]).mask is None


# -- clips ------------------------------------------------------------------------------------------------------------

SHORT = (20, 120, 240)


@pytest.fixture
def short_clip(tmp_path: Path) -> Concept:
    return read_concept(save_clip(tmp_path / "short.webp", SHORT), kind="clip", caption="a blink")


@pytest.mark.parametrize(
    ("short", "levels", "counted"),
    [
        ("loop", (20, 120, 240, 20), None),
        ("mask", (20, 120, 240, 240), (1, 1, 1, 0)),
        ("grey", (20, 120, 240, None), None),
    ],
)
def test_short_clip(
    tiny: VideoBase,
    short_clip: Concept,
    exact: None,
    short: str,
    levels: tuple[int | None, ...],
    counted: tuple[int, ...] | None,
) -> None:
    batch = batch_of(tiny, data_of(tiny, short_clip, "mask", short=short), [0, 0])
    assert batch.latents.shape == (2, 4, 4, *LATENT)
    torch.testing.assert_close(batch.latents[0], encoded(tiny, levels), atol=1e-4, rtol=1e-3)
    if counted is None:
        assert batch.mask is None
    else:
        assert batch.mask is not None
        assert torch.equal(batch.mask, torch.tensor(counted).float().view(1, 1, -1, 1, 1).expand(2, 1, 4, *LATENT))


def test_windows_of_a_long_clip_are_all_drawn(tiny: VideoBase, tmp_path: Path, exact: None) -> None:
    levels = (0, 50, 100, 150, 200, 250)
    concept = read_concept(save_clip(tmp_path / "long.webp", levels), kind="clip")
    latents = batch_of(tiny, data_of(tiny, concept), [0] * 40).latents
    windows = [encoded(tiny, levels[start : start + 4]) for start in range(3)]
    fits = torch.tensor([[torch.allclose(row, window, atol=1e-4) for window in windows] for row in latents])
    assert fits.sum(1).eq(1).all()
    assert fits.any(0).all()


def test_appearance_is_that_of_the_drawn_frames(tiny: VideoBase, tmp_path: Path, exact: None) -> None:
    levels = (0, 50, 100, 150, 200, 250)
    concept = read_concept(save_clip(tmp_path / "long.webp", levels), kind="clip")
    batch = batch_of(tiny, data_of(tiny, concept, "appearance"), [0] * 12)
    looks = tiny.embed_images(torch.stack([torch.full((3, *SIZE), v / 127.5 - 1) for v in levels], dim=1)[None])[0]
    whole = encoded(tiny, levels)
    for latents, appearance in zip(batch.latents, batch.appearance, strict=True):
        (start,) = (s for s in range(3) if torch.allclose(latents, whole[:, s : s + 4], atol=1e-4))
        torch.testing.assert_close(appearance, looks[start : start + 4], atol=1e-4, rtol=1e-3)


def test_grey_frames_borrow_the_look_of_real_ones(tiny: VideoBase, short_clip: Concept) -> None:
    appearance = batch_of(tiny, data_of(tiny, short_clip, "appearance", short="grey"), [0]).appearance
    assert appearance is not None
    pixels = torch.stack([torch.full((3, *SIZE), v / 127.5 - 1) for v in (20, 120, 240, 20)], dim=1)[None]
    torch.testing.assert_close(appearance, tiny.embed_images(pixels), atol=1e-4, rtol=1e-3)


def test_clip_of_which_the_official_rule_takes_no_frame(tiny: VideoBase, tmp_path: Path) -> None:
    concept = read_concept(save_clip(tmp_path / "fast.webp", range(0, 50, 10), fps=50), kind="clip")
    latents = batch_of(tiny, data_of(tiny, concept, "appearance", short="grey"), [0]).latents
    assert latents.shape == (1, 4, 4, *LATENT)


def test_clips_of_different_lengths_share_a_batch(tiny: VideoBase, tmp_path: Path) -> None:
    save_clip(tmp_path / "clips" / "0.webp", SHORT)
    save_clip(tmp_path / "clips" / "1.webp", (*SHORT, *SHORT))
    data = data_of(tiny, read_concept(tmp_path / "clips", kind="clip"), "mask", "appearance", short="mask")
    batch = batch_of(tiny, data, [0, 1])
    assert batch.latents.shape == (2, 4, 4, *LATENT)
    assert batch.mask is not None
    assert [mask.sum().item() for mask in batch.mask] == [3 * 16, 4 * 16]


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def captioned(tmp_path: Path) -> Concept:
    for number, caption in enumerate(("a <toy> here", "there a <toy>")):
        Image.fromarray(np.full((*SIZE, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption, encoding="utf-8")
    return read_concept(tmp_path, kind="image")


def test_cached_text_is_what_encoding_it_now_gives(tiny: VideoBase, captioned: Concept) -> None:
    (site,) = tiny.sites("text", ("word",))
    word = learned_word("toy", tiny.token_vectors("robot"), site).requires_grad_(True)
    with tiny.attached(word):
        data = data_of(tiny, captioned)
        cached, live = (batch_of(tiny, data, [1, 0, 1], live_text=live) for live in (False, True))
        torch.testing.assert_close(cached.text, live.text)
        assert cached.prompts == live.prompts == ("there a <toy>", "a <toy> here", "there a <toy>")
        assert (cached.text.requires_grad, live.text.requires_grad) == (False, True)
        assert not torch.allclose(cached.text[0], cached.text[1])
        torch.testing.assert_close(cached.empty_text, tiny.encode_text([""]))
        with torch.no_grad():
            for parameter in word.parameters():
                parameter += 1
        assert not torch.allclose(batch_of(tiny, data, [0], live_text=True).text, live.text[1:2])
        assert torch.equal(batch_of(tiny, data, [0]).text, cached.text[1:2])


def test_batch_is_a_function_of_its_name(tiny: VideoBase, motion_concept: Concept) -> None:
    data = data_of(tiny, motion_concept)
    first, again, other = (batch_of(tiny, data, [0, 0], step).latents for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
