"""Whether a video moves: Dynamic Degree as VBench decides it (vbench/dynamic_degree.py), and its rule without RAFT.

Of every two consecutive frames counts the mean of the largest twentieth of the flow's lengths. Enough of these must be
longer than the threshold: 4 in 16 frames, 6 pixels at 256 x 256.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo.errors import BadFile, BadInput
from dreamvideo.flow import optical_flow
from dreamvideo.metrics import weights
from dreamvideo.metrics.metric import Metric, Sample

__all__ = ["METRICS", "DynamicDegree", "MotionDegree", "raft"]

_RATE = 8
"""Frames per second that are looked at."""
_LARGEST = 0.05
_SIZE = 256
"""The side that thresholds are given for."""
_SMALLEST_FOR_RAFT = 128
_RAFT_SOURCE = "https://download.pytorch.org/models/raft_large_C_T_V1-22a6c225.pth"

Flow = Callable[[Tensor, Tensor], Tensor]
"""Two pictures (1, 3, H, W) in [0, 1] -> (1, 2, H', W') in pixels."""


@dataclass(frozen=True)
class DynamicDegree(Metric):
    """Movement: 1 if RAFT sees enough of it, else 0, as VBench's Dynamic Degree; its mean over videos is the degree."""

    name: ClassVar[str] = "Dynamic degree"
    needs: ClassVar[str] = "torchvision, RAFT weights; frames of 128 pixels or more"
    flow: Flow
    threshold: float = 6.0
    """Pixels at 256 x 256; CustomCrafter takes 4."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {"flow": "RAFT, 20 iterations", **_protocol(self.threshold)}

    def measure(self, sample: Sample) -> float | None:
        if min(sample.frames.shape[1:3]) < _SMALLEST_FOR_RAFT:
            return None
        return _moves(sample, self.flow, self.threshold)


@dataclass(frozen=True)
class MotionDegree(Metric):
    """Movement: Dynamic Degree's rule over Lucas-Kanade's flow. Not to be compared with numbers of RAFT."""

    name: ClassVar[str] = "Motion degree"
    needs: ClassVar[str] = "nothing"
    threshold: float = 6.0
    """Pixels at 256 x 256."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {"flow": "blocks, then Lucas-Kanade", **_protocol(self.threshold)}

    def measure(self, sample: Sample) -> float | None:
        return _moves(sample, optical_flow, self.threshold)


METRICS = (DynamicDegree, MotionDegree)


def raft(file: str | Path, *, device: str = "cpu") -> Flow:
    """RAFT by torchvision, whose weights C_T_V1 are the original "things" ones.

    Raises:
        BadInput: torchvision is not installed.
        MissingWeights, BadFile: no such file, or it holds something else.
    """
    try:
        from torchvision.models.optical_flow import raft_large
    except ImportError as error:
        raise BadInput("Dynamic degree needs torchvision: pip install 'dreamvideo[raft]'") from error
    model = raft_large()
    try:
        model.load_state_dict(weights.read(file, source=_RAFT_SOURCE))
    except RuntimeError as error:
        raise BadFile(f"{file}: not the weights of torchvision's raft_large; those are at {_RAFT_SOURCE}") from error
    model.eval().requires_grad_(False).to(device)

    def flow(first: Tensor, second: Tensor) -> Tensor:
        high, wide = (-side % 8 for side in first.shape[-2:])
        padding = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
        one, other = (F.pad(2 * frame - 1, padding, mode="replicate").to(device) for frame in (first, second))
        return model(one, other, num_flow_updates=20)[-1].cpu()

    return flow


def _protocol(threshold: float) -> dict[str, Any]:
    return {
        "frames": f"about {_RATE} per second, all of a folder",
        "threshold": f"{threshold:g} pixels at {_SIZE} x {_SIZE}, mean of the largest {_LARGEST:.0%} of the flow",
        "enough": "4 pairs in 16 frames",
    }


@torch.no_grad()
def _moves(sample: Sample, flow: Flow, threshold: float) -> float | None:
    """1.0 or 0.0; None for a single frame."""
    stride = 1 if sample.fps is None else max(1, round(sample.fps / _RATE))
    frames = torch.from_numpy(sample.frames[::stride]).permute(0, 3, 1, 2) / 255
    if len(frames) < 2:
        return None
    limit = threshold * min(frames.shape[-2:]) / _SIZE
    lengths = (flow(first[None], second[None]).norm(dim=1).flatten() for first, second in pairwise(frames))
    fast = sum(float(one.topk(max(int(_LARGEST * len(one)), 1)).values.mean()) > limit for one in lengths)
    return float(fast >= round(4 * len(frames) / 16))
