"""How layered neural atlases are learned from a clip alone (Kasten et al. 2021, section 3).

The weights of the losses are those of the official code; its flow and masks come from elsewhere, see `flow`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamvideo.diffusion import generator
from dreamvideo.edits.atlas import SCALE, Atlas, AtlasConfig
from dreamvideo.files import whole
from dreamvideo.flow import moving, optical_flow, trusted
from dreamvideo.progress import Progress

__all__ = ["unwrapped"]

_SAVE_EVERY = 2000
"""Steps after which at most a kill costs."""


def unwrapped(
    frames: Tensor, masks: Tensor | None, config: AtlasConfig, *, seed: int, file: Path | None = None
) -> Generator[Progress, None, Atlas]:
    """The layers of a clip, update by update.

    Args:
        frames: (F, 3, H, W) in [0, 1], on the device that is to compute.
        masks: (F, 1, H, W) in {0, 1}, the foreground at the start; None: what moves against the background.
        file: where they are kept, also half learned; what it holds is not learned again.
    """
    count, height, width = len(frames), *frames.shape[-2:]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        atlas = Atlas(config, frames=count, height=height, width=width).to(frames.device)
    optimizer = torch.optim.Adam(atlas.parameters(), lr=config.lr)
    settling = config.settle * count
    total = settling + config.steps
    done = _restore(file, atlas, optimizer) if file is not None and file.exists() else 0
    if done == total:
        return atlas.requires_grad_(False)
    clip, pixels = _Clip.of(frames, masks), atlas.every_pixel()
    loss = torch.zeros(())
    try:
        while done < total:
            # Of every step its own, so that one who goes on draws what one who never stopped would have drawn.
            draws = generator(seed, "atlas", done)
            if done < settling:
                some = _drawn(pixels.view(count, -1, 3)[done % count], config.points, draws)
                loss = _settled(atlas, some)
            else:
                loss = _loss(atlas, clip, _drawn(pixels, config.points, draws), config, done - settling + 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if file is not None and done % _SAVE_EVERY == 0:
                _save(file, atlas, optimizer, done)
            if done <= settling:
                yield Progress("settling", done, settling, loss.item())
            else:
                yield Progress("atlas", done - settling, config.steps, loss.item())
    finally:
        # At the end, and where the work is left; what has diverged is not worth keeping.
        if file is not None and loss.isfinite():
            _save(file, atlas, optimizer, done)
    return atlas.requires_grad_(False)


def _drawn(pixels: Tensor, count: int, draws: torch.Generator) -> Tensor:
    return pixels[torch.randint(len(pixels), (count,), generator=draws).to(pixels.device)]


def _settled(atlas: Atlas, pixels: Tensor) -> Tensor:
    """How far the maps are from leaving everything in its place."""
    points = atlas.points(pixels)
    return torch.stack([F.mse_loss(place, SCALE * points[:, :2]) for place in atlas.places(points)]).sum()


def _save(file: Path, atlas: Atlas, optimizer: torch.optim.Optimizer, done: int) -> None:
    tensors = {f"atlas.{name}": tensor for name, tensor in atlas.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": tensor for name, tensor in state.items()}
    with whole(file) as draft:
        save_file(tensors, draft, metadata={"done": str(done)})


def _restore(file: Path, atlas: Atlas, optimizer: torch.optim.Optimizer) -> int:
    """Updates that are done already."""
    with safe_open(file, "pt") as kept:
        done, tensors = int(kept.metadata()["done"]), {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "adam":
            number, _, field = rest.partition(".")
            state.setdefault(int(number), {})[field] = tensor
    own = {name.removeprefix("atlas."): tensor for name, tensor in tensors.items() if name.startswith("atlas.")}
    atlas.load_state_dict(own)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return done


@dataclass(frozen=True)
class _Clip:
    """What the layers are compared with; all (F, H, W, ...)."""

    colours: Tensor
    masks: Tensor
    ways: tuple[Tensor, Tensor]
    """Pixels (x, y, frame) that those of each frame become in the next, and in the one before."""
    sure: tuple[Tensor, Tensor]
    """Where that is known."""

    @classmethod
    def of(cls, frames: Tensor, masks: Tensor | None) -> "_Clip":
        if len(frames) == 1:
            nowhere = torch.zeros_like(frames.permute(0, 2, 3, 1))
            masks = torch.zeros_like(frames[:, :1]) if masks is None else masks
            return cls(frames.permute(0, 2, 3, 1), masks[:, 0], (nowhere, nowhere), (nowhere[..., 0], nowhere[..., 0]))
        onward, back = optical_flow(frames[:-1], frames[1:]), optical_flow(frames[1:], frames[:-1])
        sure_onward, sure_back = trusted(onward, back), trusted(back, onward)
        masks = moving(frames, onward, sure_onward) if masks is None else masks

        def way(flow: Tensor, step: int) -> Tensor:
            return torch.cat([flow, torch.full_like(flow[:, :1], step)], dim=1).permute(0, 2, 3, 1)

        # The last frame has no next one, the first none before it.
        after, before = (0, 0, 0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 0, 1, 0)
        ways = F.pad(way(onward, 1), after), F.pad(way(back, -1), before)
        sure = F.pad(sure_onward[:, 0].to(frames), after[2:]), F.pad(sure_back[:, 0].to(frames), before[2:])
        return cls(frames.permute(0, 2, 3, 1), masks[:, 0], ways, sure)


def _loss(atlas: Atlas, clip: _Clip, pixels: Tensor, config: AtlasConfig, step: int) -> Tensor:
    """The official code's losses at pixels (N, 3), with its weights.

    Squared errors are sums over colours and means over points; lengths in the atlas are in pixels of the clip.
    """
    count, (_, height, width) = len(pixels), atlas.shape
    x, y, t = pixels.long().unbind(-1)
    right, below = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
    steps = torch.eye(3, device=pixels.device)[:2]  # one pixel to the right, one down
    moved = [pixels + way[t, y, x] for way in clip.ways]
    points = atlas.points(torch.cat([pixels, pixels + steps[0], pixels + steps[1], *moved]))
    unit = atlas.half / SCALE
    layers = [unit * place for place in atlas.places(points)]
    alpha = atlas.alpha(points)
    foreground, background = atlas.colours(*(layer[: 3 * count] / unit for layer in layers))
    opaque = alpha[: 3 * count]
    here, beside, under = (opaque * foreground + (1 - opaque) * background).chunk(3)
    target = clip.colours[t, y, x]
    # Where there is no pixel to the right or below there is no gradient to compare.
    across = ((beside - here) - (clip.colours[t, y, right] - target)) * (right > x)[:, None]
    down = ((under - here) - (clip.colours[t, below, x] - target)) * (below > y)[:, None]
    loss = 5000 * _squared(here - target) + 1000 * (_squared(across) + _squared(down))
    loss = loss + 1000 * _squared((1 - opaque[:count]) * foreground[:count])
    for layer, share in zip(layers, (alpha[:count], 1 - alpha[:count]), strict=True):
        loss = loss + _stretch(*layer[: 3 * count].chunk(3))
        for there, sure in zip(layer[3 * count :].chunk(2), clip.sure, strict=True):
            gone = (there - layer[:count]).norm(dim=-1)
            loss = loss + 5 * _mean(gone * share[:, 0], sure[t, y, x])
    for there, sure in zip(alpha[3 * count :].chunk(2), clip.sure, strict=True):
        loss = loss + 49 * _mean((there - alpha[:count]).abs()[:, 0], sure[t, y, x])
    if step <= config.rigid_steps:
        apart = atlas.points(torch.cat([pixels + config.rigid_reach * one for one in steps]))
        far = [unit * place for place in atlas.places(apart)]
        for layer, distant, weight in zip(layers, far, (5, 50), strict=True):
            loss = loss + weight * _stretch(layer[:count], *distant.chunk(2), reach=config.rigid_reach)
    if step <= config.mask_steps:
        loss = loss + 2000 * F.binary_cross_entropy(alpha[:count, 0], clip.masks[t, y, x])
    return loss


def _squared(error: Tensor) -> Tensor:
    return error.square().sum(dim=-1).mean()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def _stretch(here: Tensor, beside: Tensor, under: Tensor, *, reach: float = 1.0) -> Tensor:
    """||J^T J||_F + ||(J^T J)^-1||_F, J by finite differences over `reach` pixels; least where the map is rigid."""
    jacobian = torch.stack([beside - here, under - here], dim=-1) / reach
    gram = jacobian.transpose(1, 2) @ jacobian
    norm = gram.norm(dim=(1, 2))
    # A 2 x 2 matrix and its adjugate have the same norm; the small number keeps a folded map finite.
    return (norm + norm / (torch.linalg.det(jacobian).square() + 1e-3)).mean()
