"""The processes of one run, which `torchrun` or `accelerate launch` has started: which device each has, and what they
agree on. One process alone is the usual case."""

import os
from collections.abc import Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn

__all__ = ["agreed", "average", "device", "here"]


def here(device: str = "auto") -> PartialState:
    """This process among those of the run. The first call settles how they talk: as fits `device`."""
    # Untold, accelerate does not let processes without an accelerator find each other. A single process is not told: it
    # would have none from then on.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    return PartialState(cpu=several and cpu)


def device(wanted: str) -> str:
    """The device of this process: `auto` is its accelerator where there is one, and `cuda` its own of several."""
    own = here(wanted).device
    return str(own) if wanted in ("auto", own.type) else wanted


def average(state: PartialState, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of all gradients; adapters are small, so one flat message does."""
    if state.num_processes == 1:
        return
    # A set may have taken part on another process alone: there every process needs a gradient of it.
    known = torch.tensor([float(p.grad is not None) for p in parameters], device=state.device)
    taught = [p for p, n in zip(parameters, reduce(known, "sum"), strict=True) if n]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in taught]
    flat = reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for p, mean in zip(taught, flat.split([g.numel() for g in gradients]), strict=True):
        p.grad = mean.view_as(p)


def agreed(state: PartialState, wanted: bool) -> bool:
    """True on every process if it is on any."""
    if state.num_processes == 1:
        return wanted
    return bool(reduce(torch.tensor(float(wanted), device=state.device), "sum").item())
