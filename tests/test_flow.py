"""Optical flow on pictures whose motion is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo import flow


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """(1, 3, height, width), smooth enough to follow."""
    rough = torch.rand(1, 3, height // 6, width // 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("x, y", [(0, 0), (3, -2), (-7, 4)])
def test_flow_follows_a_texture(x: int, y: int) -> None:
    whole = texture(96, 96)
    first, second = whole[..., 16:80, 16:80], whole[..., 16 - y : 80 - y, 16 - x : 80 - x]
    found, back = flow.optical_flow(first, second), flow.optical_flow(second, first)
    sure = flow.trusted(found, back)
    error = (found - torch.tensor([x, y]).view(1, 2, 1, 1)).norm(dim=1, keepdim=True)
    assert sure.float().mean() > 0.7
    assert error[sure].mean() < 0.1


def test_warping_takes_pixels_from_where_the_flow_points() -> None:
    picture = texture(20, 30)
    moved = flow.warped(picture, torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 20, 30))
    assert torch.allclose(moved[..., 1:, :-2], picture[..., :-1, 2:], atol=1e-5)


def test_flow_that_does_not_come_back_is_not_trusted() -> None:
    there = torch.zeros(1, 2, 8, 8)
    there[:, 0] = 3
    assert not flow.trusted(there, torch.zeros_like(there)).any()
    assert flow.trusted(there, -there)[..., :5].all()
    assert not flow.trusted(there, -there)[..., 5:].any()  # leaves the frame
