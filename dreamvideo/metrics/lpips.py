"""Perceptual distances between frames: Customize-A-Video's consistency over time and diversity over seeds.

LPIPS (Zhang et al. 2018, arXiv:1801.03924, eq. 1), version 0.1 over AlexNet: of both pictures' activations after each
of five convolutions, every place a unit vector, the squared differences weighted by channel, averaged over places,
summed over the convolutions. Its package wants torchvision, so that the computation is written out here; the weights
are those of the package and of torchvision. Customize-A-Video does not say which network it used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo.errors import BadFile
from dreamvideo.metrics import weights
from dreamvideo.metrics.metric import Metric, Sample

__all__ = ["METRICS", "Lpips", "LpipsConsistency", "LpipsDiversity"]

_TRUNK, _MIX = "alexnet-owt-7be5be79.pth", "alex.pth"
_TRUNK_SOURCE = f"https://download.pytorch.org/models/{_TRUNK}"
_MIX_SOURCE = "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1/alex.pth"
_CONVOLUTIONS = (  # name, stride, padding, and whether the largest of every 3 x 3 places is taken before
    ("features.0", 4, 2, False),
    ("features.3", 1, 2, True),
    ("features.6", 1, 1, True),
    ("features.8", 1, 1, False),
    ("features.10", 1, 1, False),
)
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of pixels in [-1, 1]."""
_SMALLEST = 31
"""Pixels; of a smaller picture nothing reaches the last convolution."""
_SLICE = 32
"""Pairs that pass the network at once."""


@dataclass(frozen=True)
class Lpips:
    """A distance between pictures; `tensors` are AlexNet's and those that weigh its channels, by their files' names."""

    tensors: Mapping[str, Tensor]
    device: str = "cpu"

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> "Lpips":
        """From a folder with torchvision's AlexNet and LPIPS's own weights, named as they are published.

        Raises:
            MissingWeights: one of the two is not there.
            BadFile: one is broken, or holds another network.
        """
        trunk = weights.read(Path(folder) / _TRUNK, source=_TRUNK_SOURCE)
        found = trunk | weights.read(Path(folder) / _MIX, source=_MIX_SOURCE)
        wanted = [f"{name}.{part}" for name, *_ in _CONVOLUTIONS for part in ("weight", "bias")]
        wanted += [f"lin{number}.model.1.weight" for number in range(len(_CONVOLUTIONS))]
        if missing := [name for name in wanted if name not in found]:
            raise BadFile(f"{folder}: {_TRUNK} and {_MIX} lack {', '.join(missing)}")
        return cls({name: found[name].float().to(device) for name in wanted}, device)

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number that is made with this says of it."""
        return {"distance": "LPIPS 0.1, AlexNet", "preprocessing": "none, frames in their own size"}

    @torch.no_grad()
    def __call__(self, ones: np.ndarray, others: np.ndarray) -> Tensor:
        """Of pairs of pictures, uint8 (N, H, W, 3) both -> (N,)."""
        pairs = zip(_pixels(ones).split(_SLICE), _pixels(others).split(_SLICE), strict=True)
        return torch.cat([self._distances(one.to(self.device), other.to(self.device)).cpu() for one, other in pairs])

    def _distances(self, ones: Tensor, others: Tensor) -> Tensor:
        total = torch.zeros(len(ones), device=ones.device)
        for number, (one, other) in enumerate(zip(self._activations(ones), self._activations(others), strict=True)):
            difference = (F.normalize(one, dim=1, eps=1e-10) - F.normalize(other, dim=1, eps=1e-10)).square()
            total += F.conv2d(difference, self.tensors[f"lin{number}.model.1.weight"]).mean(dim=(1, 2, 3))
        return total

    def _activations(self, x: Tensor) -> Iterator[Tensor]:
        for name, stride, padding, pooled in _CONVOLUTIONS:
            x = F.max_pool2d(x, 3, stride=2) if pooled else x
            weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
            x = F.conv2d(x, weight, bias, stride=stride, padding=padding).relu()
            yield x


@dataclass(frozen=True)
class LpipsConsistency(Metric):
    """Flicker: LPIPS of every two consecutive frames (Customize-A-Video's temporal consistency)."""

    name: ClassVar[str] = "LPIPS consistency"
    needs: ClassVar[str] = "LPIPS weights"
    higher_is_better: ClassVar[bool] = False
    distance: Lpips

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {**self.distance.protocol, "frames": "all, consecutive pairs"}

    def measure(self, sample: Sample) -> float | None:
        if len(sample.frames) < 2 or min(sample.frames.shape[1:3]) < _SMALLEST:
            return None
        return float(self.distance(sample.frames[:-1], sample.frames[1:]).mean())


@dataclass(frozen=True)
class LpipsDiversity(Metric):
    """Variety: LPIPS of a video and those of the same prompt and other seeds (Customize-A-Video's diversity)."""

    name: ClassVar[str] = "LPIPS diversity"
    needs: ClassVar[str] = "LPIPS weights, videos of the same prompt and other seeds"
    distance: Lpips

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {**self.distance.protocol, "frames": "all, those at the same place in both videos"}

    def measure(self, sample: Sample) -> float | None:
        others = [one for one in sample.siblings if one.shape == sample.frames.shape]
        if not others or min(sample.frames.shape[1:3]) < _SMALLEST:
            return None
        return float(np.mean([float(self.distance(sample.frames, other).mean()) for other in others]))


METRICS = (LpipsConsistency, LpipsDiversity)


def _pixels(pictures: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W), normalised as LPIPS does."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (pixels - mean) / std
