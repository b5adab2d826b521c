"""Whether a video moves as a reference clip does.

Motion fidelity after Yatim et al. (Space-Time Diffusion Features, CVPR 2024, arXiv:2311.17009): points are tracked
through both videos, every track is compared with the one that is most like it in the other video, and the mean is
taken over the tracks of each. Three things differ. Tracks follow our own flow from the first frame on, instead of
CoTracker's; only points that move and stay in the frame count; and two tracks are compared by the cosine of their
whole paths, instead of the mean of the cosines of single steps, where a point that rests would count as one that moves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo.flow import optical_flow
from dreamvideo.metrics.metric import Metric, Motion, Sample

__all__ = ["METRICS", "MotionFidelity"]

_GRID = 32
"""Tracks that begin along each side."""
_MOVES = 0.03
"""Shares of a side that a point must go in all, there and back, to count as moving."""


@dataclass(frozen=True)
class MotionFidelity(Metric):
    """Motion fidelity: likeness of tracked paths to those of the reference clips, in [-1, 1]."""

    name: ClassVar[str] = "Motion fidelity"
    needs: ClassVar[str] = "clips of the motion"

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {
            "tracks": f"{_GRID} x {_GRID} from the first frame, by blocks and Lucas-Kanade",
            "reference": "tracked likewise; true paths where they are known",
            "moving": f"{_MOVES:.0%} of a side or more",
            "frames": "as many as both have",
            "likeness": "cosine of displacements over time, best match both ways",
        }

    @torch.no_grad()
    def measure(self, sample: Sample) -> float | None:
        """The mean over the clips. A clip in which nothing moves does not count; a video in which nothing moves is 0
        beside any other."""
        count = len(sample.frames)
        theirs = [paths for motion in sample.motions if len(_displacements(paths := _paths(motion, count)))]
        if count < 2 or not theirs:
            return None
        ours = _tracked(sample.frames)
        return float(np.mean([_likeness(ours, paths) for paths in theirs]))


METRICS = (MotionFidelity,)


def _likeness(ours: Tensor, theirs: Tensor) -> float:
    one, other = _displacements(ours[:, : theirs.shape[1]]), _displacements(theirs)
    if not len(one):
        return 0.0
    cosines = one @ other.T
    return float((cosines.amax(dim=0).mean() + cosines.amax(dim=1).mean()) / 2)


def _paths(motion: Motion, count: int) -> Tensor:
    """Of the first `count` frames: (N, F, 2)."""
    return _tracked(motion.frames[:count]) if motion.paths is None else torch.from_numpy(motion.paths[:, :count])


def _tracked(frames: np.ndarray) -> Tensor:
    """Where those of a grid of points go that stay in sight: uint8 (F, H, W, 3) -> (N, F, 2), x and y as shares of the
    sides."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    sides = torch.tensor([frames.shape[2], frames.shape[1]])
    ticks = (torch.arange(_GRID) + 0.5) / _GRID
    paths = [torch.cartesian_prod(ticks, ticks)]
    for first, second in pairwise(pictures):
        flow = optical_flow(first[None], second[None])
        grid = (2 * paths[-1] - 1)[None, None]
        step = F.grid_sample(flow, grid, padding_mode="border", align_corners=False)[0, :, 0].T
        paths.append(paths[-1] + step / sides)
    found = torch.stack(paths, dim=1)
    return found[((found >= 0) & (found <= 1)).all(dim=(1, 2))]


def _displacements(paths: Tensor) -> Tensor:
    """The steps of the paths (N, F, 2) that go anywhere, each path a unit vector: (N', 2 F - 2)."""
    steps = paths[:, 1:] - paths[:, :-1]
    steps = steps[steps.norm(dim=-1).sum(dim=-1) > _MOVES]
    return F.normalize(steps.flatten(1).float(), dim=-1)
