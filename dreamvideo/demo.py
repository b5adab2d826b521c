"""The whole story in one command: learn a subject and a motion, compose them, show it on a page."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image, ImageDraw

from dreamvideo import api, media
from dreamvideo.bases.base import VideoBase
from dreamvideo.files import write_text

__all__ = ["demo", "draw_motion", "draw_subject"]

_SIDE = 128  # pixels of the example inputs
_FRAMES = 16

_RANDOM_WEIGHTS = (
    "This base has random weights: everything below was really learned and sampled, but a random denoiser makes noise. "
    "It shows that the whole path runs on this machine, not what the method can do."
)


@dataclass(frozen=True)
class _Section:
    title: str
    items: list[tuple[str, str]]
    """(file, caption)"""


def demo(base: VideoBase, folder: Path, *, steps: int, on_stage: Callable[[str], None] = print) -> Path:
    """Run the story on `base` into `folder` and return its page.

    Args:
        steps: updates of each stage.
    """
    begun = time.monotonic()
    pictures, clip = draw_subject(folder / "inputs" / "robot"), draw_motion(folder / "inputs" / "bounce.mp4")
    settings = [{"train": {"steps": steps}}]
    on_stage("learning the subject <robot> from four pictures")
    subject = api.learn(
        base, pictures[0].parent, method="dreamvideo-subject", word="robot", out=folder / "robot", settings=settings
    )
    on_stage("learning the motion of one clip")
    motion = api.learn(
        base, clip, method="dreamvideo-motion", caption="a ball bouncing", out=folder / "bounce", settings=settings
    )
    on_stage("sampling: the base, each alone, both together")
    cases = [
        ("base", "a robot bouncing", "the base alone", ()),
        ("subject", "a <robot>", "the subject alone", (subject,)),
        ("motion", "a robot bouncing", "the motion alone", (motion,)),
        ("both", "a <robot> bouncing", "both together", (subject, motion)),
    ]
    made = []
    for name, prompt, caption, concepts in cases:
        guide = pictures[0] if motion in concepts else None
        video = api.generate(base, prompt, concepts=concepts, appearance=guide, seed=3)
        made.append((video.save(folder / f"{name}.mp4"), f"{caption}: {prompt}"))
    sections = [
        _Section("Learned from", _shown(folder, [*((p, "a <robot>") for p in pictures), (clip, "a ball bouncing")])),
        _Section("Made", _shown(folder, made)),
    ]
    templates = Environment(loader=PackageLoader("dreamvideo"), autoescape=select_autoescape())
    page = folder / "index.html"
    note = _RANDOM_WEIGHTS if base.name == base.tiny_name else None
    seconds = f"{time.monotonic() - begun:.0f}"
    text = templates.get_template("demo.html").render(base=base.name, note=note, seconds=seconds, sections=sections)
    write_text(page, text)
    return page


def _shown(folder: Path, items: list[tuple[Path, str]]) -> list[tuple[str, str]]:
    return [(str(path.relative_to(folder)), caption) for path, caption in items]


def draw_subject(folder: Path) -> list[Path]:
    """Four pictures of one robot, each on another ground, at another place and size, with masks."""
    grounds = ((190, 220, 240), (245, 225, 180), (200, 235, 200), (235, 210, 225))
    places = ((0.5, 0.52, 0.8), (0.38, 0.6, 0.62), (0.62, 0.45, 0.7), (0.5, 0.58, 0.9))
    paths = []
    for number, (ground, (x, y, size)) in enumerate(zip(grounds, places, strict=True)):
        picture, mask = Image.new("RGB", (_SIDE, _SIDE), ground), Image.new("L", (_SIDE, _SIDE), 0)
        _robot(picture, x * _SIDE, y * _SIDE, size * _SIDE / 2, mask=False)
        _robot(mask, x * _SIDE, y * _SIDE, size * _SIDE / 2, mask=True)
        paths.append(folder / f"{number}.png")
        media.write_video(paths[-1], np.asarray(picture)[None], fps=1)
        media.write_video(folder / "masks" / f"{number}.png", np.asarray(mask.convert("RGB"))[None], fps=1)
    return paths


def _robot(image: Image.Image, x: float, y: float, r: float, *, mask: bool) -> None:
    """A red robot's head around (x, y), half as wide as 2 r; on a mask all of it is white."""

    def colour(value: tuple[int, int, int]) -> int | tuple[int, int, int]:
        return 255 if mask else value

    pen = ImageDraw.Draw(image)
    pen.line((x, y - 0.6 * r, x, y - r), fill=colour((90, 90, 100)), width=max(2, int(r / 12)))
    pen.ellipse((x - 0.1 * r, y - 1.1 * r, x + 0.1 * r, y - 0.9 * r), fill=colour((250, 200, 60)))
    pen.rounded_rectangle((x - 0.7 * r, y - 0.6 * r, x + 0.7 * r, y + 0.7 * r), r / 5, fill=colour((215, 60, 50)))
    for side in (-1, 1):
        eye = x + side * 0.3 * r
        pen.ellipse((eye - 0.17 * r, y - 0.3 * r, eye + 0.17 * r, y + 0.04 * r), fill=colour((250, 250, 250)))
        pen.ellipse((eye - 0.07 * r, y - 0.2 * r, eye + 0.07 * r, y - 0.06 * r), fill=colour((30, 30, 40)))
    pen.rounded_rectangle((x - 0.4 * r, y + 0.25 * r, x + 0.4 * r, y + 0.45 * r), r / 12, fill=colour((70, 70, 80)))


def draw_motion(path: Path) -> Path:
    """A clip of a ball that bounces twice while it crosses the picture."""
    frames = []
    for frame in range(_FRAMES):
        progress = frame / (_FRAMES - 1)
        x, y = _SIDE * (0.15 + 0.7 * progress), _SIDE * (0.8 - 0.55 * abs(np.sin(2 * np.pi * progress)))
        image = Image.new("RGB", (_SIDE, _SIDE), (205, 225, 240))
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 0.88 * _SIDE, _SIDE, _SIDE), fill=(120, 160, 100))
        pen.ellipse((x - 11, y - 11, x + 11, y + 11), fill=(60, 90, 200))
        frames.append(np.asarray(image))
    media.write_video(path, np.stack(frames), fps=8)
    return path
