"""Pictures and clips on disk <-> arrays: read, crop, choose frames, write.

Pixels are uint8 RGB, (H, W, 3) for a picture and (F, H, W, 3) for a clip; a size is (height, width).
`crop_wide` and the rule "grey" of `plan_frames` are those of the official DreamVideo code
(`CenterCropWide` in `utils/transforms.py`, `tools/datasets/video_custom_dataset.py`).
"""

import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, get_args

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from dreamvideo.errors import BadInput, BadMedia
from dreamvideo.files import whole

__all__ = [
    "CLIP_SUFFIXES",
    "FRAME_LIMIT",
    "IMAGE_SUFFIXES",
    "Clip",
    "ClipInfo",
    "FramePlan",
    "Kind",
    "Picture",
    "Pixels",
    "Short",
    "Size",
    "crop_mask",
    "crop_wide",
    "kind_of",
    "plan_frames",
    "probe_clip",
    "read_clip",
    "read_image",
    "read_mask",
    "write_video",
]

Kind = Literal["image", "clip"]
Short = Literal["loop", "mask", "grey"]
Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # height, width

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
CLIP_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".avi", ".gif", ".webp"})
FRAME_LIMIT = 512  # source frames of one clip that are used

_ANIMATIONS = frozenset({".gif", ".webp"})  # read by Pillow: FFmpeg does not decode animated webp
_BT601 = 6  # the matrix by which RGB becomes YUV, as H.264 numbers it

# What Pillow and FFmpeg raise on damaged bytes; Pillow has no type of its own for it.
_DAMAGE = (FFmpegError, OSError, ValueError, SyntaxError, EOFError, LookupError, struct.error, DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright picture: `pixels` (H, W, 3), and `alpha` (H, W) or None where all of it is opaque.

    What shines through is white: `pixels` are composited over white, as a page shows the picture.
    """

    pixels: Pixels
    alpha: Pixels | None


@dataclass(frozen=True)
class ClipInfo:
    """A clip as shown, after its display rotation. `variable`: its frames do not sit on a constant grid."""

    frames: int
    fps: float
    width: int
    height: int
    variable: bool


@dataclass(frozen=True, eq=False)
class Clip:
    """`frames` (F, height, width, 3) at a constant `fps`."""

    frames: Pixels
    fps: float


class _Frame(NamedTuple):
    pixels: Pixels
    time: float  # seconds
    rate: float  # frames per second that the file states


def kind_of(path: Path) -> Kind | None:
    """Tell a picture from a clip by the suffix; a webp is a clip if it moves. None is neither."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES & CLIP_SUFFIXES:
        try:
            with Image.open(path) as image:
                image.seek(1)
        except _DAMAGE:
            return "image"  # it has no second frame, or reading it says what is wrong
        return "clip"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "clip" if suffix in CLIP_SUFFIXES else None


def read_image(path: Path) -> Picture:
    """Read a picture in any of Pillow's modes, upright; what is missing, damaged or no picture is BadMedia."""
    with _decoding(path, "picture") as file, Image.open(file) as image:
        return _picture(ImageOps.exif_transpose(image))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask (H, W): True is the subject, where the file is light and not transparent."""
    picture = read_image(path)
    light = np.asarray(Image.fromarray(picture.pixels).convert("L")) >= 128
    return light if picture.alpha is None else light & (picture.alpha >= 128)


def _picture(image: Image.Image) -> Picture:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 and not scale
        image = Image.fromarray(np.round(np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return Picture(pixels=np.array(image.convert("RGB")), alpha=None)
    image = image.convert("RGBA")
    alpha = np.array(image.getchannel("A"))
    page = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Picture(pixels=np.array(page.convert("RGB")), alpha=None if alpha.min() == 255 else alpha)


@contextmanager
def _decoding(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open `path`; whatever a decoder raises on its bytes becomes one line that names it."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadMedia(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
    with file:
        if not file.read(1):
            raise BadMedia(f"{path}: is empty; put a whole copy in its place")
        file.seek(0)
        try:
            yield file
        except UnidentifiedImageError as error:
            raise BadMedia(f"{path}: is not a {what}; put one in its place or remove it") from error
        except _DAMAGE as error:
            reason = error.strerror if isinstance(error, FFmpegError) else str(error)
            raise BadMedia(f"{path}: is damaged or no {what} ({reason}); put a whole copy in its place") from error


def probe_clip(path: Path) -> ClipInfo:
    """Measure a clip. The first FRAME_LIMIT frames are decoded to be sure of them, the rest only counted."""
    shape, times, stated = (0, 0, 3), [], 0.0
    for frame in islice(_frames(path), FRAME_LIMIT):
        shape, stated = frame.pixels.shape, frame.rate
        times.append(frame.time)
    fps, _, variable = _constant_rate(path, times, stated=stated)
    count = len(times) if len(times) < FRAME_LIMIT else _count(path)
    return ClipInfo(frames=count, fps=fps, width=shape[1], height=shape[0], variable=variable)


def read_clip(path: Path, *, size: Size, limit: int = FRAME_LIMIT) -> Clip:
    """Read the first `limit` frames at a constant rate; to save memory each is cropped to `size` once decoded."""
    cropped, times, stated = [], [], 0.0
    for frame in islice(_frames(path), limit):
        cropped.append(crop_wide(frame.pixels, size))
        times.append(frame.time)
        stated = frame.rate
    fps, nearest, _ = _constant_rate(path, times, stated=stated)
    return Clip(frames=np.stack([cropped[index] for index in nearest]), fps=fps)


def _constant_rate(path: Path, times: Sequence[float], *, stated: float) -> tuple[float, list[int], bool]:
    """Return a rate, the frame nearest to each tick of it, and whether that is not simply every frame.

    The rate is the stated one if every frame is within half a tick of it, else the average.
    """
    if not times:
        raise BadMedia(f"{path}: holds no frames; put a whole copy in its place")
    elapsed = np.subtract(times, times[0])
    ticks = np.arange(len(times))
    if elapsed[-1] <= 0 or np.abs(elapsed * stated - ticks).max() < 0.5:
        return stated, ticks.tolist(), False
    average = float(ticks[-1] / elapsed[-1])
    nearest = np.abs(elapsed * average - ticks[:, None]).argmin(axis=1)
    return average, nearest.tolist(), not np.array_equal(nearest, ticks)


def _frames(path: Path) -> Iterator[_Frame]:
    return _animation(path) if path.suffix.lower() in _ANIMATIONS else _video(path)


def _count(path: Path) -> int:
    if path.suffix.lower() in _ANIMATIONS:
        return sum(1 for _ in _animation(path))
    with _video_stream(path) as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream))


def _video(path: Path) -> Iterator[_Frame]:
    with _video_stream(path) as (container, stream):
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 25)  # 25: what FFmpeg assumes
        for number, frame in enumerate(container.decode(stream)):
            pixels = np.rot90(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), round(frame.rotation / 90))
            yield _Frame(pixels, number / rate if frame.time is None else frame.time, rate)


@contextmanager
def _video_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    # Handing over an open file keeps FFmpeg from reading a protocol or a pattern into its name.
    with _decoding(path, "clip") as file, av.open(file, "r") as container:
        # the picture on a record's cover is a video stream too
        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams:
            found = "only sound" if container.streams.audio else "no video"
            raise BadMedia(f"{path}: holds {found}; put a whole clip in its place or remove it")
        yield container, streams[0]


def _animation(path: Path) -> Iterator[_Frame]:
    """Encoders store a held frame once and show it longer: it is repeated here, in steps of the shortest."""
    with _decoding(path, "clip") as file, Image.open(file) as image:
        lengths = [_seconds_shown(frame) for frame in ImageSequence.Iterator(image)]
        repeats = [round(length / min(lengths)) for length in lengths]
        rate = sum(repeats) / sum(lengths)
        time = 0.0
        for frame, length, count in zip(ImageSequence.Iterator(image), lengths, repeats, strict=True):
            pixels = _picture(frame).pixels
            for part in range(count):
                yield _Frame(pixels, time + length * part / count, rate)
            time += length


def _seconds_shown(frame: Image.Image) -> float:
    frame.load()  # a webp knows it only then
    return (frame.info.get("duration") or 100) / 1000  # browsers show 0 as a tenth of a second


def crop_wide(pixels: Pixels, size: Size) -> Pixels:
    """Cut out the middle of the picture shrunk until `size` just fits; the official CenterCropWide."""
    small = pixels.shape[0] < size[0] or pixels.shape[1] < size[1]  # BOX would enlarge it into blocks
    return _crop(Image.fromarray(pixels), size, Image.Resampling.BICUBIC if small else Image.Resampling.BOX)


def crop_mask(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Crop as `crop_wide`, by nearest neighbours, straight to the latent `size`."""
    return _crop(Image.fromarray(mask.astype(np.uint8)), size, Image.Resampling.NEAREST).astype(bool)


def _crop(image: Image.Image, size: Size, resample: Image.Resampling) -> Pixels:
    height, width = size
    scale = min(image.width / width, image.height / height)
    # In floating point the side that fits exactly can come out one short.
    fitted = max(round(image.width // scale), width), max(round(image.height // scale), height)
    left, top = (fitted[0] - width) // 2, (fitted[1] - height) // 2
    return np.array(image.resize(fitted, resample).crop((left, top, left + width, top + height)))


@dataclass(frozen=True)
class FramePlan:
    """Which of `count` source frames a sample of `frames` frames takes. Made by `plan_frames`.

    `starts` are the starts to draw from. With "grey" they count from 1 as the official code does, where 0 and 1
    differ: from 0 the first frame taken is number `stride`.
    """

    count: int
    frames: int
    stride: int
    starts: range
    short: Short

    def indices(self, start: int) -> tuple[int | None, ...]:
        """Return `frames` source indices, counted from 0; None is a mid-grey frame."""
        if self.short == "grey":
            return self._official(start)
        if self.short == "mask":
            return tuple(min(place, self.count - 1) for place in self._places(start))
        return tuple(place % self.count for place in self._places(start))

    def counted(self, start: int) -> tuple[bool, ...]:
        """Return which positions take part in the loss: all, but for the repeated last frames of "mask"."""
        return tuple(self.short != "mask" or place < self.count for place in self._places(start))

    def _places(self, start: int) -> range:
        return range(start, start + self.frames * self.stride, self.stride)

    def _official(self, start: int) -> tuple[int | None, ...]:
        span = self.frames * self.stride
        if self.count <= self.frames:
            end = self.count + 1
        elif self.count < span + 5:
            end = self.count  # so the last frame is never taken
        else:
            end = start + span
        taken = [counter - 1 for counter in range(start or self.stride, end, self.stride)][: self.frames]
        return (*taken, *[None] * (self.frames - len(taken)))


def plan_frames(count: int, fps: float, *, frames: int, rate: float, short: Short) -> FramePlan:
    """Plan to sample `frames` frames at about `rate` per second from a clip of `count` frames at `fps`.

    `short` says what a clip does that is too short:
        "grey" is the official rule to the letter: what is missing is mid-grey and takes part in the loss;
        "loop" lowers the stride until the clip suffices, and starts over where even stride 1 is too much;
        "mask" does the same, but repeats the last frame and leaves the repeats out of the loss.
    """
    if short not in get_args(Short):
        raise BadInput(f"short = {short!r}: unknown; choose one of {', '.join(get_args(Short))}")
    stride = max(round(fps / rate), 1)
    if short == "grey":
        stride = stride if count > frames else 1
        starts = range(max(count - stride * frames - 4, 1))
    else:
        stride = max(min(stride, (count - 1) // max(frames - 1, 1)), 1)
        starts = range(max(count - (frames - 1) * stride, 1))
    return FramePlan(count=count, frames=frames, stride=stride, starts=starts, short=short)


def write_video(path: Path, frames: Pixels, *, fps: float) -> None:
    """Write a clip as its suffix says, whole or not at all; the same frames give the same bytes."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise BadInput(f"{path}: frames must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
    suffix = path.suffix.lower()
    if suffix and suffix not in _ENCODERS:
        raise BadInput(f"{path}: cannot write {suffix}; use {', '.join(_ENCODERS)}, or none for a folder of png")
    if suffix == ".png" and len(frames) > 1:
        raise BadInput(f"{path}: a png holds one frame, not {len(frames)}; leave out the suffix for a folder")
    try:
        if path.is_dir() and set(path.iterdir()) - set(path.glob("[0-9][0-9][0-9][0-9].png")):
            raise BadInput(f"{path}: is a folder that holds more than frames; choose another name")
        with whole(path) as draft:
            if suffix:
                draft.write_bytes(_ENCODERS[suffix](frames, fps))
            else:
                draft.mkdir()
                for number in range(len(frames)):
                    (draft / f"{number:04d}.png").write_bytes(_png(frames[number:], fps))
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"{path}: cannot be written ({reason}); free some space or choose another place") from error


def _mp4(frames: Pixels, fps: float) -> bytes:
    # yuv420p halves the colour planes: odd sides gain a copy of their last row or column
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(10_000)
        # One thread, no routine made for one processor: the bytes would vary with the machine, at times with the run
        options = {"crf": "17", "x264-params": "cpu-independent=1"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = _BT601
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _animated(frames: Pixels, fps: float, *, kind: str, unit: int) -> bytes:
    """`unit`: the milliseconds in which the format counts. Ends are rounded, not lengths, so that none drifts."""
    ends = np.round(np.arange(len(frames) + 1) * 1000 / fps / unit).astype(int) * unit
    duration = np.diff(ends).tolist()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
    return buffer.getvalue()


def _png(frames: Pixels, _fps: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "PNG")
    return buffer.getvalue()


_ENCODERS: Mapping[str, Callable[[Pixels, float], bytes]] = {
    ".mp4": _mp4,
    ".gif": partial(_animated, kind="GIF", unit=10),
    ".webp": partial(_animated, kind="WEBP", unit=1),
    ".png": _png,
}
