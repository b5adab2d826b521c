"""Where pixels go from frame to frame, and which of them are not the background.

Layered atlases are made from RAFT's flow and from Mask R-CNN's masks (Kasten et al. 2021). Neither is here, because
both want torchvision. In their places stand

flow:  blocks matched on a coarse grid, then dense Lucas-Kanade from coarse to fine (Bouguet 2000). What it gets wrong
       is found by going forward and back, as the official code finds what RAFT gets wrong, and counts for nothing.
mask:  motion against the background. An affine map explains how most pixels move; seen through these maps, the median
       of the frames shows the background alone, and what differs from it is the foreground. It needs a foreground that
       leaves its place; masks that are given are better.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["moving", "optical_flow", "trusted", "warped"]

_COARSE = 32
"""Pixels of the shorter side, at least, at the level where blocks are matched."""
_WINDOW = 5
_COST = 2e-3
"""Of a pixel of displacement, in colours in [0, 1]: where all looks alike, nothing moves."""
_ROUNDS = 6
"""Of warping, at each level."""
_STIFFNESS = 3e-3
"""Added to the structure tensor, for the same reason."""
_REWEIGHTINGS = 20
_SCATTER = 1e-2
"""Squared pixels by which points of the background miss their map."""
_ENOUGH = 0.05
"""Of a frame's flow must be trusted; else the camera counts as still."""
_WITNESSES = 16
"""Frames, at most, of which the background is the median."""


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] -> flow (N, 2, H, W) in pixels, x first: first(p) = second(p + flow(p))."""
    levels = [(first, second)]
    while min(levels[-1][0].shape[-2:]) >= 2 * _COARSE:
        levels.append(tuple(F.avg_pool2d(one, 2) for one in levels[-1]))
    flow = _median(_matched(*levels[-1]))
    for one, other in reversed(levels):
        size = one.shape[-2:]
        growth = torch.tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]]).to(flow).view(1, 2, 1, 1)
        flow = growth * F.interpolate(flow, size, mode="bilinear")
        for _ in range(_ROUNDS):
            flow = _median(flow + _update(one, warped(other, flow)))
    return flow


def trusted(flow: Tensor, back: Tensor) -> Tensor:
    """(N, 1, H, W), true where `flow` and then `back` lead to within a pixel of the start, inside the frame."""
    gone = _pixels(flow) + flow
    sides = torch.tensor([flow.shape[-1] - 1, flow.shape[-2] - 1]).to(flow).view(1, 2, 1, 1)
    inside = ((gone >= 0) & (gone <= sides)).all(dim=1, keepdim=True)
    return inside & ((flow + warped(back, flow)).norm(dim=1, keepdim=True) < 1)


def warped(pictures: Tensor, flow: Tensor) -> Tensor:
    """The pictures (N, C, H, W) as seen at p + flow(p), with their edges continued."""
    place = _pixels(flow) + flow
    sides = torch.tensor([flow.shape[-1], flow.shape[-2]]).to(flow).view(1, 2, 1, 1)
    grid = ((2 * place + 1) / sides - 1).permute(0, 2, 3, 1)
    return F.grid_sample(pictures, grid.to(pictures), padding_mode="border", align_corners=False)


def moving(frames: Tensor, flow: Tensor, trust: Tensor) -> Tensor:
    """The foreground: what differs from the background that most pixels move with.

    Args:
        frames: (F, 3, H, W) in [0, 1].
        flow: (F - 1, 2, H, W), from each frame to the next.
        trust: (F - 1, 1, H, W), where the flow is to be believed.

    Returns:
        (F, 1, H, W) in {0, 1}.
    """
    count, height, width = len(frames), *frames.shape[-2:]
    points = _pixels(frames)[0].flatten(1)
    points = torch.cat([points, torch.ones_like(points[:1])])  # (3, H W)
    # to_first[t] takes a place of the background in frame t to its place in frame 0.
    to_first = [torch.eye(3).to(frames)]
    for step, sure in zip(flow, trust, strict=True):
        to_first.append(to_first[-1] @ torch.linalg.inv(_dominant(points, step.flatten(1), sure.flatten(1))))
    witnesses = torch.linspace(0, count - 1, min(count, _WITNESSES)).round().long().tolist()
    differences = []
    for number, frame in enumerate(frames):
        ways = torch.stack([torch.linalg.inv(to_first[other]) @ to_first[number] for other in witnesses])
        gone = (ways @ points - points)[:, :2].unflatten(2, (height, width))
        background = warped(frames[witnesses], gone).median(dim=0).values
        differences.append((frame - background).norm(dim=0, keepdim=True))
    difference = _smooth(torch.stack(differences), 3)
    return (difference > _threshold(difference)).to(frames)


def _matched(first: Tensor, second: Tensor) -> Tensor:
    """The whole-pixel flow (N, 2, H, W) by which the squares around the pixels differ least."""
    height, width = first.shape[-2:]
    reach = min(height, width) // 4
    wide = F.pad(second, (reach,) * 4, mode="replicate")
    best = first.new_full((len(first), 1, height, width), torch.inf)
    flow = torch.zeros_like(first[:, :2])
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            there = wide[..., reach + y : reach + y + height, reach + x : reach + x + width]
            cost = _smooth((first - there).abs().mean(dim=1, keepdim=True), _WINDOW) + _COST * (x * x + y * y) ** 0.5
            flow = torch.where(cost < best, torch.tensor([x, y]).to(flow).view(1, 2, 1, 1), flow)
            best = torch.minimum(cost, best)
    return flow


def _update(first: Tensor, second: Tensor) -> Tensor:
    """The step that the linearised pictures ask for, at most a pixel."""
    across, down = torch.gradient((first + second) / 2, dim=(3, 2))
    change = second - first

    def summed(product: Tensor) -> Tensor:
        return _smooth(product.sum(dim=1, keepdim=True), _WINDOW)

    xx, xy, yy = summed(across * across) + _STIFFNESS, summed(across * down), summed(down * down) + _STIFFNESS
    x, y = summed(across * change), summed(down * change)
    steps = torch.cat([xy * y - yy * x, xy * x - xx * y], dim=1) / (xx * yy - xy * xy)
    return steps.clamp(-1, 1)


def _dominant(points: Tensor, flow: Tensor, trust: Tensor) -> Tensor:
    """The affine map (3, 3) by which most of the trusted points move: reweighted least squares from their median on.

    Points (3, N) with ones below x and y, flow (2, N), trust (1, N).
    """
    affine = torch.eye(3).to(flow)
    if trust.sum() < _ENOUGH * trust.numel():
        return affine
    points, target = points[:, trust[0]], (points[:2] + flow)[:, trust[0]]
    affine[:2, 2] = (target - points[:2]).median(dim=1).values
    for _ in range(_REWEIGHTINGS):
        weighted = points / (_SCATTER + (affine[:2] @ points - target).square().sum(dim=0))
        affine[:2] = torch.linalg.solve(weighted @ points.T, weighted @ target.T).T
    return affine


def _threshold(values: Tensor) -> float:
    """Otsu's: the one that parts the values into the two groups that differ most."""
    counts = torch.histc(values.cpu(), 256)
    centres = torch.linspace(float(values.min()), float(values.max()), 256)
    below, total = counts.cumsum(0), counts.sum()
    mass, whole = (counts * centres).cumsum(0), (counts * centres).sum()
    between = (whole * below - total * mass).square() / (below * (total - below)).clamp(min=1)
    return float(centres[between.argmax()])


def _pixels(like: Tensor) -> Tensor:
    """(1, 2, H, W), each pixel's x and y."""
    rows, columns = (torch.arange(side).to(like) for side in like.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y])[None]


def _median(flow: Tensor) -> Tensor:
    """Of the square around every pixel: what single pixels say against their neighbours is dropped."""
    wide = F.pad(flow, (_WINDOW // 2,) * 4, mode="replicate")
    around = wide.unfold(2, _WINDOW, 1).unfold(3, _WINDOW, 1).flatten(-2)
    return around.median(dim=-1).values


def _smooth(pictures: Tensor, side: int) -> Tensor:
    """The mean over a square around every pixel, edges continued."""
    return F.avg_pool2d(F.pad(pictures, (side // 2,) * 4, mode="replicate"), side, stride=1)
