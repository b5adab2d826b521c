"""Text2LIVE's generator (Bar-Tal et al. 2022): a picture -> an edit layer, colours and opacity.

A U-Net with thin skips, that of the deep image prior (Ulyanov et al. 2018). It is trained on one picture and run on it,
so its normalisation takes that picture's statistics at all times.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Generator"]

_THIN = 4
"""Channels of a skip."""


class _Layer(nn.Sequential):
    """Reflection padding, convolution, normalisation over the picture, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, *, side: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReflectionPad2d(side // 2),
            nn.Conv2d(inputs, outputs, side, stride),
            nn.BatchNorm2d(outputs, track_running_stats=False),
            nn.LeakyReLU(0.2),
        )


class Generator(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] -> (N, 4, H, W) in (0, 1): an edit's colours and its opacity."""

    def __init__(self, *, scales: int, channels: int) -> None:
        super().__init__()
        inputs = [3] + [channels] * (scales - 1)
        self.skips = nn.ModuleList(_Layer(size, _THIN, side=1) for size in inputs)
        self.down = nn.ModuleList(
            nn.Sequential(_Layer(size, channels, side=3, stride=2), _Layer(channels, channels, side=3))
            for size in inputs
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + _THIN, track_running_stats=False),
                _Layer(channels + _THIN, channels, side=3),
                _Layer(channels, channels, side=1),
            )
            for _ in inputs
        )
        self.last = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.Sigmoid())
        # Of the shorter side: below it, padding would find nothing to reflect.
        self.smallest = 2 ** (scales + 1)

    def forward(self, pictures: Tensor) -> Tensor:
        size = pictures.shape[-2:]
        enlarged = [max(side, self.smallest) for side in size]
        x, skips = F.interpolate(pictures, enlarged, mode="bilinear"), []
        for skip, down in zip(self.skips, self.down, strict=True):
            skips.append(skip(x))
            x = down(x)
        for thin, up in zip(reversed(skips), reversed(self.up), strict=True):
            x = up(torch.cat([F.interpolate(x, thin.shape[-2:], mode="bilinear"), thin], dim=1))
        return F.interpolate(self.last(x), size, mode="bilinear")
