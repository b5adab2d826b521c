"""Scores of any video from any tool: files -> a sample -> what can be measured of it."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dreamvideo import media, metrics, processes
from dreamvideo.bundled import EXAMPLES
from dreamvideo.concept import read_concept
from dreamvideo.errors import BadInput
from dreamvideo.metrics.metric import Motion, Sample, Score, measured

__all__ = ["read_motions", "read_pictures", "read_video", "score"]


def score(
    video: str | Path,
    *,
    prompt: str | None = None,
    references: str | Path | None = None,
    reference_clip: str | Path | None = None,
    siblings: Iterable[str | Path] = (),
    base: str | Path | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    lpips: str | Path | None = None,
    raft: str | Path | None = None,
    device: str = "auto",
) -> list[Score]:
    """Measure a video by all that applies to it.

    Args:
        video: a file, or a folder of frames.
        prompt: in plain words: the class word where the prompt had a learned one.
        references: a folder of pictures of the subject.
        reference_clip: a clip of the motion, or a folder of clips; their frames are also what should not be copied.
        siblings: videos of the same prompt and other seeds.
        base, clip, dino, lpips, raft: what to measure with, see `metrics.for_base`.

    Raises:
        BadInput: a file, a folder or an encoder will not do.
    """
    chosen = metrics.for_base(base, clip=clip, dino=dino, lpips=lpips, raft=raft, device=processes.device(device))
    frames, fps = read_video(video)
    motions = () if reference_clip is None else read_motions(reference_clip, fps=fps)
    sample = Sample(
        frames=frames,
        fps=fps,
        prompt=prompt,
        references=() if references is None else read_pictures(references),
        motions=motions,
        siblings=[read_video(sibling)[0] for sibling in siblings],
    )
    return measured(chosen, sample)


def read_video(path: str | Path) -> tuple[np.ndarray, float | None]:
    """All frames of a clip, uint8 (F, H, W, 3), and their rate; a folder of frames has none.

    Raises:
        BadInput: not one clip, or frames of different sizes.
    """
    path = Path(path)
    if path.is_dir():
        frames = read_pictures(path)
        if len({frame.shape for frame in frames}) > 1:
            raise BadInput(f"{path}: its pictures have different sizes; the frames of a video have one")
        return np.stack(frames), None
    info = media.probe_clip(path)
    clip = media.read_clip(path, size=(info.height, info.width), limit=info.frames)
    return clip.frames, clip.fps


def read_pictures(path: str | Path) -> list[np.ndarray]:
    """The pictures of a folder in the order of their names, uint8 (H, W, 3) of any sizes.

    Raises:
        BadInput: there are none, or one is broken.
    """
    return [media.read_image(example.path).pixels for example in read_concept(path, kind="image").examples]


def read_motions(path: str | Path, *, fps: float | None) -> list[Motion]:
    """A clip or a folder of clips, with every frame that a video of `fps` would show; None takes all.

    An example that comes with the package has true paths.

    Raises:
        BadInput: there are none, or one is broken.
    """
    motions = []
    for example in read_concept(path, kind="clip").examples:
        frames, rate = read_video(example.path)
        stride = 1 if fps is None or rate is None else max(1, round(rate / fps))
        paths = _true_paths(example.path)
        motions.append(Motion(frames=frames[::stride], paths=None if paths is None else paths[:, ::stride]))
    return motions


def _true_paths(clip: Path) -> np.ndarray | None:
    """Where a grid of points on the thing in an example clip is, (N, F, 2); None for any other clip.

    A point of the thing is at centre + scale R(angle) point, as the examples were rendered.
    """
    clip, home = clip.resolve(), EXAMPLES.resolve()
    if not clip.is_relative_to(home):
        return None
    row = json.loads((home / "truth.json").read_text(encoding="utf-8"))[clip.relative_to(home).as_posix()]
    centre, scale, angle = (np.array(row[name], dtype=np.float32) for name in ("centre", "scale", "angle"))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    ticks = np.linspace(-0.35, 0.35, 6, dtype=np.float32)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    return centre + scale[:, None] * np.einsum("xyf,ny->nfx", turned, points)
