"""Small real files for the tests of media and concepts, good and odd ones."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def halves(height: int, width: int, left: tuple[int, int, int] = RED, right: tuple[int, int, int] = BLUE):
    """A picture of two colours, so that rotation and crop can be seen."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    return pixels


def greys(levels: list[int], height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A clip whose frame i is all of grey `levels[i]`, so that frames can be told apart."""
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def save_image(path: Path, pixels: NDArray[np.uint8], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_clip(path: Path, frames: NDArray[np.uint8], milliseconds: list[int], *, rotation: int = 0) -> Path:
    """Encode frames shown at the given times, in the container that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25) if path.suffix == ".avi" else Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for pixels, time in zip(frames, milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = round(Fraction(time, 1000) / stream.codec_context.time_base)
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def save_without_frames(path: Path) -> Path:
    """An mp4 whose header announces a video, and nothing behind it."""
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return path


def save_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncate(path: Path) -> Path:
    """Cut off the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def as_nobody(folder: Path, code: str) -> str:
    """Run `code` inside `folder` as a user without rights, since root reads every file; return what it prints."""
    folder.chmod(0o755)
    prepare = (
        "import os; from PIL import Image; Image.init()\n"
        "from dreamvideo.concept import *; from dreamvideo.errors import *; from dreamvideo.media import *\n"
        "from pathlib import Path\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", prepare + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
