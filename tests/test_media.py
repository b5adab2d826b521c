"""Reading, cropping, choosing frames and writing, on real files."""

import os
from pathlib import Path

import numpy as np
import pytest
from mediafiles import (
    BLUE,
    RED,
    WHITE,
    as_nobody,
    greys,
    halves,
    save_clip,
    save_image,
    save_sound,
    save_without_frames,
    truncate,
)
from PIL import Image

from dreamvideo import media
from dreamvideo.errors import BadInput, BadMedia
from dreamvideo.media import (
    crop_mask,
    crop_wide,
    kind_of,
    plan_frames,
    probe_clip,
    read_clip,
    read_image,
    read_mask,
    write_video,
)

SIZE = (48, 64)


def levels(frames: np.ndarray) -> list[int]:
    """The mean grey of each frame, to the nearest ten: lossy codecs move it a little."""
    return [round(float(frame.mean()) / 10) * 10 for frame in frames]


def near(pixel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() < 12)


# Pictures


def test_rgb_and_grey(tmp_path: Path) -> None:
    pixels = halves(20, 30)
    picture = read_image(save_image(tmp_path / "a.png", pixels))
    assert picture.alpha is None
    assert np.array_equal(picture.pixels, pixels)
    grey = read_image(save_image(tmp_path / "g.png", np.full((4, 5), 77, np.uint8)))
    assert grey.pixels.shape == (4, 5, 3) and (grey.pixels == 77).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    path = save_image(tmp_path / "deep.png", np.array([[0, 257], [32768, 65535]], np.uint16))
    assert read_image(path).pixels[..., 0].tolist() == [[0, 1], [128, 255]]


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(halves(16, 32)).convert("CMYK").save(tmp_path / "ink.jpg", quality=95)
    with Image.open(tmp_path / "ink.jpg") as image:
        assert image.mode == "CMYK"
    pixels = read_image(tmp_path / "ink.jpg").pixels
    assert near(pixels[8, 4], RED) and near(pixels[8, 28], BLUE)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(halves(8, 8)).convert("P")
    image.save(tmp_path / "p.png", transparency=image.getpixel((0, 0)))
    picture = read_image(tmp_path / "p.png")
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == [0, 0, 0, 0, 255, 255, 255, 255]
    assert near(picture.pixels[0, 0], WHITE) and near(picture.pixels[0, 7], BLUE)


def test_alpha_is_kept_and_shows_white(tmp_path: Path) -> None:
    rgba = np.dstack([halves(4, 4), np.array([0, 0, 255, 128], np.uint8)[None].repeat(4, 0)])
    picture = read_image(save_image(tmp_path / "a.png", rgba))
    assert picture.alpha is not None and picture.alpha[0].tolist() == [0, 0, 255, 128]
    assert picture.pixels[0].tolist() == [[255, 255, 255], [255, 255, 255], [0, 0, 255], [127, 127, 255]]


def test_opaque_alpha_is_none_in_rgba_and_la(tmp_path: Path) -> None:
    rgba = np.dstack([halves(4, 4), np.full((4, 4), 255, np.uint8)])
    assert read_image(save_image(tmp_path / "a.png", rgba)).alpha is None
    Image.new("LA", (3, 3), (90, 255)).save(tmp_path / "la.png")
    picture = read_image(tmp_path / "la.png")
    assert picture.alpha is None and (picture.pixels == 90).all()


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = save_image(tmp_path / "photo.jpg", halves(20, 40), exif=exif, quality=95)
    pixels = read_image(path).pixels
    assert pixels.shape == (40, 20, 3)
    assert near(pixels[2, 10], RED) and near(pixels[-3, 10], BLUE)


def test_one_pixel(tmp_path: Path) -> None:
    path = save_image(tmp_path / "dot.png", np.full((1, 1, 3), 9, np.uint8))
    assert read_image(path).pixels.shape == (1, 1, 3)


def test_name_with_spaces_and_unicode(tmp_path: Path) -> None:
    picture = save_image(tmp_path / "mein süßer Hund 犬.jpg", halves(8, 8))
    assert read_image(picture).pixels.shape == (8, 8, 3)
    clip = save_clip(tmp_path / "a: b %03d ñ.mp4", greys([10, 20]), [0, 40])
    assert probe_clip(clip).frames == 2


def test_mask_is_light_and_opaque(tmp_path: Path) -> None:
    mask = read_mask(save_image(tmp_path / "m.png", np.array([[0, 127, 128, 255]], np.uint8)))
    assert mask.dtype == bool and mask.tolist() == [[False, False, True, True]]
    cut_out = np.full((1, 2, 4), 255, np.uint8)
    cut_out[0, 0, 3] = 0
    assert read_mask(save_image(tmp_path / "c.png", cut_out)).tolist() == [[False, True]]


def complaint(read, path: Path) -> str:
    with pytest.raises(BadMedia) as caught:
        read(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}: ")
    return line


def test_truncated_jpg(tmp_path: Path) -> None:
    path = truncate(save_image(tmp_path / "a.jpg", halves(200, 200)))
    assert "truncated" in complaint(read_image, path)


def test_empty_file(tmp_path: Path) -> None:
    for name, read in (("a.jpg", read_image), ("a.mp4", probe_clip), ("a.gif", probe_clip)):
        (tmp_path / name).touch()
        assert "is empty" in complaint(read, tmp_path / name)


def test_text_named_png(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("this is no picture")
    assert "is not a picture" in complaint(read_image, tmp_path / "a.png")


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in complaint(read_image, tmp_path / "a.png")
    assert "No such file" in complaint(probe_clip, tmp_path / "a.mp4")


def test_unreadable_files(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", halves(8, 8)).chmod(0)
    save_clip(tmp_path / "a.mp4", greys([10, 20]), [0, 40]).chmod(0)
    code = """
for read, name in ((read_image, "a.png"), (probe_clip, "a.mp4")):
    try:
        read(Path(name))
    except BadMedia as error:
        print(error)
"""
    advice = "cannot be read (Permission denied); check its name and permissions"
    assert as_nobody(tmp_path, code).splitlines() == [f"a.png: {advice}", f"a.mp4: {advice}"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # damage can announce any size
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    rng = np.random.default_rng(0)
    good = [
        save_image(tmp_path / "good.jpg", halves(40, 40)),
        save_image(tmp_path / "good.png", rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)),
        tmp_path / "good.gif",
        tmp_path / "good.webp",
        save_clip(tmp_path / "good.mp4", greys(list(range(0, 200, 20))), list(range(0, 400, 40))),
    ]
    for path in good[2:4]:
        write_video(path, np.stack([np.roll(halves(24, 32), step, axis=1) for step in range(5)]), fps=8)
    refused = 0
    for path in good:
        whole, bad = path.read_bytes(), tmp_path / f"bad{path.suffix}"
        for turn in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 8):
                damaged[place] = rng.integers(0, 256)
            bad.write_bytes(damaged[: rng.integers(1, len(damaged))] if turn % 3 == 0 else damaged)
            try:
                read_image(bad) if kind_of(bad) == "image" else probe_clip(bad)
            except BadMedia as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 20


# Clips


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".avi", ".m4v"])
def test_containers(tmp_path: Path, suffix: str) -> None:
    path = save_clip(tmp_path / f"a{suffix}", greys([20, 80, 140, 200, 100]), [0, 40, 80, 120, 160])
    info = probe_clip(path)
    assert (info.frames, info.width, info.height, info.variable) == (5, 64, 48, False)
    assert info.fps == pytest.approx(25, rel=0.01)
    clip = read_clip(path, size=SIZE)
    assert clip.frames.dtype == np.uint8 and clip.frames.shape == (5, 48, 64, 3)
    assert levels(clip.frames) == [20, 80, 140, 200, 100]
    assert clip.fps == info.fps


def test_variable_rate_becomes_constant(tmp_path: Path) -> None:
    # four frames 40 ms apart, then four 160 ms apart: 7 intervals in 0.76 s
    path = save_clip(tmp_path / "v.mp4", greys(list(range(20, 180, 20))), [0, 40, 80, 120, 280, 440, 600, 760])
    info = probe_clip(path)
    assert info.variable and info.frames == 8
    assert info.fps == pytest.approx(7 / 0.76, rel=1e-3)
    clip = read_clip(path, size=SIZE)
    assert clip.fps == info.fps
    # ticks at 0, 109, 217, 326, 434, 543, 651, 760 ms, each with the frame nearest in time
    assert levels(clip.frames) == [20, 80, 100, 100, 120, 140, 140, 160]


def test_jitter_is_not_variable(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "j.mp4", greys([20, 60, 100, 140]), [0, 33, 67, 100])
    assert not probe_clip(path).variable
    assert levels(read_clip(path, size=SIZE).frames) == [20, 60, 100, 140]


def test_display_rotation_is_applied(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "r.mp4", np.stack([halves(48, 64)] * 3), [0, 40, 80], rotation=90)
    info = probe_clip(path)
    assert (info.width, info.height) == (48, 64)
    frame = read_clip(path, size=(64, 48)).frames[0]
    # a quarter turn against the clock brings the left half down
    assert frame[5, 24].argmax() == 2 and frame[-5, 24].argmax() == 0


def test_only_the_first_frames_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "FRAME_LIMIT", 4)
    for suffix in (".mp4", ".gif"):
        path = tmp_path / f"long{suffix}"
        write_video(path, greys(list(range(20, 140, 10))), fps=10)
        assert probe_clip(path).frames == 12
        clip = read_clip(path, size=SIZE, limit=3)
        assert levels(clip.frames) == [20, 30, 40] and clip.fps == pytest.approx(10)


def test_frames_are_cropped_while_reading(tmp_path: Path) -> None:
    path = save_clip(tmp_path / "a.mp4", np.stack([halves(48, 96)] * 2), [0, 40])
    frames = read_clip(path, size=(24, 24)).frames
    assert frames.shape == (2, 24, 24, 3)
    assert near(frames[0, 12, 2], (254, 0, 0)) and near(frames[0, 12, -3], (0, 0, 254))


def test_zero_frames(tmp_path: Path) -> None:
    path = save_without_frames(tmp_path / "a.mp4")
    assert "holds no frames" in complaint(probe_clip, path)
    assert "holds no frames" in complaint(lambda clip: read_clip(clip, size=SIZE), path)


def test_sound_only(tmp_path: Path) -> None:
    assert "only sound" in complaint(probe_clip, save_sound(tmp_path / "a.mp4"))


def test_truncated_clip(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    path = truncate(save_clip(tmp_path / "a.mp4", noise, [0, 40, 80]))
    assert "damaged" in complaint(probe_clip, path)


def test_webp_is_a_clip_only_if_it_moves(tmp_path: Path) -> None:
    still = save_image(tmp_path / "still.webp", halves(8, 8))
    write_video(tmp_path / "moving.webp", greys([20, 200]), fps=8)
    (tmp_path / "broken.webp").write_text("no")
    names = ("still.webp", "moving.webp", "broken.webp", "a.JPG", "b.MOV", "c.gif", "README.txt", "d.heic")
    kinds = ["image", "clip", "image", "image", "clip", "clip", None, None]
    assert [kind_of(tmp_path / name) for name in names] == kinds
    assert read_image(still).pixels.shape == (8, 8, 3)


# Crops


def test_crop_is_the_official_one() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (150, 301, 3), dtype=np.uint8)
    # scale = 150 / 64 = 2.34; 301 // 2.34 = 128; the middle 64 of 128 columns
    expected = Image.fromarray(pixels).resize((128, 64), Image.Resampling.BOX).crop((32, 0, 96, 64))
    assert np.array_equal(crop_wide(pixels, (64, 64)), np.asarray(expected))


def test_crop_never_comes_out_short() -> None:
    # 53 // (53 / 49) is 48 in floating point: one column would be missing and come out black
    assert any(side // (side / 49) < 49 for side in range(49, 400))
    for side in range(1, 400):
        for shape in ((side, side + 3, 3), (side + 3, side, 3)):
            white = np.full(shape, 255, np.uint8)
            assert crop_wide(white, (49, 49)).shape == (49, 49, 3) and crop_wide(white, (49, 49)).all()
            assert crop_mask(white[..., 0] > 0, (49, 49)).all()


def test_small_pictures_are_enlarged_smoothly() -> None:
    dot = np.full((1, 1, 3), 200, np.uint8)
    assert (crop_wide(dot, (64, 48)) == 200).all()
    row = crop_wide(halves(4, 4, (0, 0, 0), WHITE), (32, 32))[16, :, 0].astype(int)
    assert len(set(row.tolist())) > 4


def test_crop_at_size_changes_nothing() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(crop_wide(pixels, (64, 64)), pixels)


def test_mask_is_cut_like_the_picture() -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:96] = 255  # the left half of the middle square
    mask = crop_mask(pixels[..., 0] > 0, (8, 8))
    assert mask.dtype == bool and mask[:, :4].all() and not mask[:, 4:].any()
    assert np.array_equal(crop_wide(pixels, (8, 8))[..., 0] > 127, mask)


# Frames


def test_grey_is_the_official_rule_for_a_short_clip() -> None:
    plan = plan_frames(80, 24, frames=32, rate=8, short="grey")
    assert plan.stride == 3 and plan.starts == range(1)
    indices = plan.indices(0)
    assert indices == (*range(2, 78, 3), *[None] * 6)
    assert sum(index is not None for index in indices) == 26
    assert all(plan.counted(0)) and len(plan.counted(0)) == 32


def test_grey_is_the_official_rule_for_a_long_clip() -> None:
    plan = plan_frames(300, 24, frames=32, rate=8, short="grey")
    assert plan.stride == 3 and plan.starts == range(200)  # 0 to 300 - 96 - 5
    assert plan.indices(0) == (*range(2, 95, 3), None)  # 31 real frames
    assert plan.indices(1) == tuple(range(0, 96, 3))
    assert plan.indices(199)[-1] == 198 + 93


def test_grey_takes_all_of_a_clip_that_is_just_long_enough() -> None:
    assert plan_frames(32, 24, frames=32, rate=8, short="grey").indices(0) == tuple(range(32))
    plan = plan_frames(20, 24, frames=32, rate=8, short="grey")
    assert plan.stride == 1 and plan.indices(0) == (*range(20), *[None] * 12)
    # one more than wanted: the stride applies, and the last frame is lost
    assert plan_frames(33, 8, frames=32, rate=8, short="grey").indices(0) == tuple(range(32))
    assert plan_frames(33, 24, frames=32, rate=8, short="grey").indices(0) == (*range(2, 32, 3), *[None] * 22)
    assert len(plan_frames(36, 8, frames=32, rate=8, short="grey").indices(0)) == 32


def official(count: int, fps: float, frames: int, start: int) -> tuple[int | None, ...]:
    """The official reader, frame by frame with its counter."""
    stride = 1 if count <= frames else max(round(fps / 8), 1)
    span = stride * frames
    end = count if count < span + 5 else start + span
    taken = []
    for counter in range(1, count + 1):
        in_time = counter <= end if count <= frames else counter < end
        if counter >= start and (counter - start) % stride == 0 and in_time:
            taken.append(counter - 1)
    taken = taken[:frames]
    return (*taken, *[None] * (frames - len(taken)))


def test_grey_agrees_with_the_official_reader_everywhere() -> None:
    for count in range(1, 80):
        for fps in (6, 8, 15, 24, 30):
            plan = plan_frames(count, fps, frames=16, rate=8, short="grey")
            for start in plan.starts:
                assert plan.indices(start) == official(count, fps, 16, start), (count, fps, start)


@pytest.mark.parametrize("short", ["loop", "mask"])
def test_a_long_clip_is_sampled_at_the_rate(short: media.Short) -> None:
    plan = plan_frames(100, 24, frames=8, rate=8, short=short)
    assert plan.stride == 3 and plan.starts == range(79)
    assert plan.indices(0) == (0, 3, 6, 9, 12, 15, 18, 21)
    assert plan.indices(78)[-1] == 99
    assert all(plan.counted(78))


@pytest.mark.parametrize("short", ["loop", "mask"])
def test_the_stride_shrinks_until_the_clip_suffices(short: media.Short) -> None:
    plan = plan_frames(15, 24, frames=8, rate=8, short=short)
    assert plan.stride == 2 and plan.starts == range(1) and plan.indices(0) == tuple(range(0, 15, 2))
    assert plan_frames(14, 24, frames=8, rate=8, short=short).stride == 1
    assert plan_frames(8, 24, frames=8, rate=8, short=short).indices(0) == tuple(range(8))


def test_a_clip_too_short_loops_or_holds_its_last_frame() -> None:
    loop = plan_frames(3, 24, frames=8, rate=8, short="loop")
    assert loop.starts == range(1) and loop.indices(0) == (0, 1, 2, 0, 1, 2, 0, 1)
    assert all(loop.counted(0))
    mask = plan_frames(3, 24, frames=8, rate=8, short="mask")
    assert mask.indices(0) == (0, 1, 2, 2, 2, 2, 2, 2)
    assert mask.counted(0) == (True, True, True, False, False, False, False, False)


def test_every_start_stays_inside_the_clip() -> None:
    for count in range(1, 60):
        for frames in (1, 2, 8, 16):
            plan = plan_frames(count, 30, frames=frames, rate=8, short="loop")
            assert len(plan.starts) >= 1
            for start in plan.starts:
                indices = plan.indices(start)
                assert len(indices) == frames and max(indices) < count
                assert count < frames or list(indices) == sorted(set(indices))


def test_slow_clips_have_stride_one_and_unknown_rules_are_refused() -> None:
    assert plan_frames(50, 2, frames=8, rate=8, short="loop").stride == 1
    with pytest.raises(BadInput, match="loop, mask, grey"):
        plan_frames(50, 2, frames=8, rate=8, short="repeat")  # type: ignore[arg-type]


# Writing


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
@pytest.mark.parametrize("fps", [8, 24])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str, fps: int) -> None:
    # the third frame is held: gif and webp store it once
    shown = [20, 60, 100, 100, 100, 140, 180, 220]
    write_video(tmp_path / f"out{suffix}", greys(shown), fps=fps)
    clip = read_clip(tmp_path / f"out{suffix}", size=SIZE)
    assert levels(clip.frames) == shown
    assert clip.fps == pytest.approx(fps, rel=0.02)
    assert not probe_clip(tmp_path / f"out{suffix}").variable


def test_mp4_is_close_to_its_frames(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    frames = np.stack([np.stack([x * 3, y * 4, x + y + 8 * i], -1) for i in range(8)]).astype(np.uint8)
    write_video(tmp_path / "a.mp4", frames, fps=8)
    error = read_clip(tmp_path / "a.mp4", size=SIZE).frames.astype(int) - frames
    assert np.abs(error).mean() < 3


def test_webp_is_lossless(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    write_video(tmp_path / "a.webp", frames, fps=8)
    assert np.array_equal(read_clip(tmp_path / "a.webp", size=(16, 24)).frames, frames)


def test_odd_sizes_gain_a_copy_of_the_edge(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.full((2, 33, 47, 3), 180, np.uint8), fps=8)
    info = probe_clip(tmp_path / "a.mp4")
    assert (info.width, info.height) == (48, 34)
    assert levels(read_clip(tmp_path / "a.mp4", size=(34, 48)).frames[:, -1:, :]) == [180, 180]


def test_png_and_folder(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    write_video(tmp_path / "one.png", frames[:1], fps=8)
    assert np.array_equal(read_image(tmp_path / "one.png").pixels, frames[0])
    for _ in range(2):  # a folder of png may be replaced
        write_video(tmp_path / "many", frames, fps=8)
    assert sorted(entry.name for entry in (tmp_path / "many").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    assert np.array_equal(read_image(tmp_path / "many" / "0002.png").pixels, frames[2])


@pytest.mark.parametrize(("suffix", "times"), [(".mp4", 300), (".gif", 2), (".webp", 2), (".png", 2)])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, suffix: str, times: int) -> None:
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (1 if suffix == ".png" else 12, 32, 48, 3), dtype=np.uint8)
    written = set()
    for _ in range(times):
        # fill the heap and free it: with all its routines x264 wrote some videos in a thousand otherwise
        _ = [np.full(size, draw.integers(256), np.uint8) for size in draw.integers(1, 20_000, draw.integers(1, 40))]
        write_video(tmp_path / f"a{suffix}", frames, fps=8)
        written.add((tmp_path / f"a{suffix}").read_bytes())
    assert len(written) == 1


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    frames = greys([10, 20])
    with pytest.raises(BadInput, match=r"cannot write \.mkv; use \.mp4, \.gif, \.webp, \.png"):
        write_video(tmp_path / "a.mkv", frames, fps=8)
    with pytest.raises(BadInput, match="one frame, not 2"):
        write_video(tmp_path / "a.png", frames, fps=8)
    with pytest.raises(BadInput, match="uint8"):
        write_video(tmp_path / "a.mp4", frames / 255, fps=8)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.png").write_bytes(b"dear")
    with pytest.raises(BadInput, match="more than frames"):
        write_video(tmp_path / "photos", greys([10]), fps=8)
    assert (tmp_path / "photos" / "dog.png").read_bytes() == b"dear"


@pytest.mark.parametrize("name", ["a.mp4", "frames"])
def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(_path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.mp4").write_bytes(b"before")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match="No space left on device") as caught:
        write_video(tmp_path / name, greys([10, 20]), fps=8)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"before"


@pytest.mark.skipif("DREAMVIDEO_SHARED" not in os.environ, reason="DREAMVIDEO_SHARED names no folder of real files")
def test_real_photos_and_clips() -> None:
    data = Path(os.environ["DREAMVIDEO_SHARED"]) / "data"
    picture = read_image(data / "dog" / "00.jpg")
    assert crop_wide(picture.pixels, (256, 256)).shape == (256, 256, 3)
    info = probe_clip(data / "motion" / "car_turn.mp4")
    assert (info.frames, info.fps, info.variable) == (32, 20, False)
    assert read_clip(data / "motion" / "car_turn.mp4", size=(64, 64)).frames.shape == (32, 64, 64, 3)
