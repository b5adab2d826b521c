"""What the processes of one run agree on."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn

__all__ = ["agreed", "average"]


def average(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of all gradients; adapters are small, so one flat message does."""
    if accelerator.num_processes == 1:
        return
    # A set may have taken part on another process alone: there every process needs a gradient of it.
    known = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
    taught = [p for p, n in zip(parameters, accelerator.reduce(known, reduction="sum"), strict=True) if n]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in taught]
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
    for p, mean in zip(taught, flat.split([g.numel() for g in gradients]), strict=True):
        p.grad = mean.view_as(p)


def agreed(accelerator: Accelerator, wanted: bool) -> bool:
    """True on every process if it is on any."""
    if accelerator.num_processes == 1:
        return wanted
    return bool(accelerator.reduce(torch.tensor(float(wanted), device=accelerator.device)).item())
