"""Null-text inversion (Mokady et al. 2023): a clip's noise, and empty texts by which guidance, too, leads back from it.

    min over e_i of || z_i+1 - ddim(x_i, eps(e_i) + guidance (eps(caption) - eps(e_i))) ||^2,   i = 0 ... S - 1

z_i are the levels of the clip's DDIM inversion with its caption, from noise on, and x_i is where the texts so far have
led from the same noise. Each e_i starts as the one before. One e_i serves all frames (Video-P2P).
"""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamvideo.bases.base import VideoBase
from dreamvideo.files import whole
from dreamvideo.progress import Progress
from dreamvideo.sample import SampleConfig, denoise, schedule, trajectory

__all__ = ["Inverted", "inverted", "tuned"]


@dataclass(frozen=True)
class Inverted:
    """A clip's way to noise and back, as far as it is known."""

    way: list[Tensor]
    """(1, C, F, h, w) each, from the clip on: one more than there are steps."""
    empty: list[Tensor] = field(default_factory=list)
    """(1, L, D) each, in the order of sampling."""

    def save(self, file: Path) -> None:
        """Keep it."""
        parts = {"way": self.way, "empty": self.empty}
        with whole(file) as draft:
            save_file({name: torch.cat(part).cpu() for name, part in parts.items() if part}, draft)

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Inverted":
        """What was kept."""
        kept = load_file(file, str(device))
        return cls(*([*kept[name].split(1)] if name in kept else [] for name in ("way", "empty")))


def inverted(base: VideoBase, latents: Tensor, caption: Tensor, *, steps: int) -> Generator[Progress, None, Inverted]:
    """The way to noise of a clip's latents (1, C, F, h, w), its caption's states (1, L, D)."""
    # Contiguous, as a file gives them back: another layout rounds otherwise.
    way = [latents.contiguous()]
    for x in trajectory(base, latents, caption, steps=steps):
        way.append(x.contiguous())
        yield Progress("inversion", len(way) - 1, steps)
    return Inverted(way)


def tuned(
    base: VideoBase, known: Inverted, empty: Tensor, caption: Tensor, config: SampleConfig, *, updates: int, lr: float
) -> Generator[Progress, None, None]:
    """Find the empty texts that `known` has not, step by step, and put them there.

    Args:
        empty: (1, L, D), the empty text's states.
        config: filled, its sampler `ddim`.
        updates: of each text at most.
        lr: of the first step; it falls evenly to half of it.
    """
    scheduler, losses = schedule(base, config), dict[int, float]()

    def texts(step: int, x: Tensor) -> Tensor:
        if step == len(known.empty):
            start, wanted = known.empty[-1] if step else empty, known.way[-2 - step]
            part = step / config.steps
            found, losses[step] = _found(
                base, scheduler, step, x, start, caption, wanted,
                guidance=config.guidance, updates=updates, lr=lr * (1 - part / 2), enough=1e-5 + 1e-3 * part,
            )  # fmt: skip
            known.empty.append(found)
        return torch.cat([known.empty[step], caption])

    for progress in denoise(base, known.way[-1], texts, config):
        if (loss := losses.get(progress.step - 1)) is not None:
            yield replace(progress, stage="null text", loss=loss)


@torch.enable_grad()
def _found(
    base: VideoBase,
    scheduler: Any,
    step: int,
    x: Tensor,
    start: Tensor,
    caption: Tensor,
    wanted: Tensor,
    *,
    guidance: float,
    updates: int,
    lr: float,
    enough: float,
) -> tuple[Tensor, float]:
    """The text that leads from x to `wanted` in that step, and how far from it; no better than `enough`."""
    t = scheduler.timesteps[step]
    with torch.no_grad():
        conditional = base.predict(x, t, caption).float()
    text = start.detach().float().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([text], lr=lr)
    for _ in range(updates):
        unconditional = base.predict(x, t, text.to(start.dtype)).float()
        guided = unconditional + guidance * (conditional - unconditional)
        loss = F.mse_loss(scheduler.step(guided, t, x).prev_sample, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < enough:
            break
    return text.detach().to(start.dtype), loss.item()
