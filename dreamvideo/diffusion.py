"""Noise processes as pure tensor algebra, and `Draw`, which owns the randomness of a training step.

Forward process (Ho et al. 2020, eq. 4): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) n.
Offset noise (official DreamVideo code): n = randn[B,C,F,h,w] + s randn[B,C,F,1,1], and n is also the target.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamvideo.errors import Unsupported

__all__ = ["Draw", "EpsPrediction", "Process", "VPrediction", "generator", "offset_noise", "process_of"]


class Process(ABC):
    """One discrete noise process. A subclass says what the denoiser predicts.

    Questions: `target`: what should the denoiser say? `clean`: which x_0 does a prediction mean?
    """

    def __init__(self, abar: Tensor) -> None:
        """`abar`: cumulative alpha products, float64, shape (T,), falling from near 1 to near 0."""
        self.abar = abar.double()

    @property
    def steps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.abar)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast over `like` (B, ...)."""
        abar = self.abar.to(t.device)[t]
        shape = (-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like).view(shape), (1 - abar).sqrt().to(like).view(shape)

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for timesteps `t` (B,) in [0, T)."""
        signal, sigma = self.signal_and_noise(t, x0)
        return signal * x0 + sigma * noise

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser is trained to predict."""

    @abstractmethod
    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x_0 that a prediction at x_t means."""

    def noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction at x_t means."""
        signal, sigma = self.signal_and_noise(t, x_t)
        return (x_t - signal * self.clean(prediction, x_t, t)) / sigma


class EpsPrediction(Process):
    """The denoiser predicts the noise (ModelScopeT2V, Stable Diffusion 1.5)."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t, x_t)
        return (x_t - sigma * prediction) / signal


class VPrediction(Process):
    """The denoiser predicts v = sqrt(abar) n - sqrt(1 - abar) x_0 (Salimans and Ho 2022, section 4)."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t, x0)
        return signal * noise - sigma * x0

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t, x_t)
        return signal * x_t - sigma * prediction


def process_of(scheduler: Mapping[str, Any], abar: Tensor) -> Process:
    """The process that a diffusers scheduler config describes; `abar` are its cumulative alpha products.

    Raises:
        Unsupported: the config's prediction type is unknown here.
    """
    kinds: dict[str, type[Process]] = {"epsilon": EpsPrediction, "v_prediction": VPrediction}
    kind = kinds.get(scheduler["prediction_type"])
    if kind is None:
        raise Unsupported(f"prediction type {scheduler['prediction_type']!r}: known are {', '.join(kinds)}")
    return kind(abar)


def generator(*seeds: int | str) -> torch.Generator:
    """A CPU generator whose stream is named by `seeds`; nearby seeds give unrelated streams."""
    name = "/".join(str(seed) for seed in seeds).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1)


def offset_noise(shape: tuple[int, ...], strength: float, generator: torch.Generator) -> Tensor:
    """Noise of shape (B, C, F, h, w) whose mean per channel and frame varies by `strength`; float32, CPU."""
    noise = torch.randn(shape, generator=generator)
    if strength:
        noise += strength * torch.randn((*shape[:3], 1, 1), generator=generator)
    return noise


@dataclass(frozen=True)
class Draw:
    """All randomness of one training step.

    It is made anew for every step from a name of that step, so a run that continues needs no generator state.
    Numbers are drawn on the CPU: the same seed gives the same run on every device.
    """

    process: Process
    generator: torch.Generator

    def noised(self, x0: Tensor, *, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, F, h, w) -> x_t, t (B,) uniform over all timesteps, target."""
        t = torch.randint(self.process.steps, (len(x0),), generator=self.generator).to(x0.device)
        noise = offset_noise(tuple(x0.shape), offset, self.generator).to(x0)
        return self.process.noisy(x0, noise, t), t, self.process.target(x0, noise, t)

    def posterior(self, mean: Tensor, std: Tensor) -> Tensor:
        """A sample of N(mean, std^2), same shape."""
        return mean + std * torch.randn(mean.shape, generator=self.generator).to(mean)

    def index(self, n: int) -> int:
        """One of 0 ... n-1."""
        return int(torch.randint(n, (), generator=self.generator))

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return float(torch.rand((), generator=self.generator)) < p

    def pick(self, values: Tensor) -> Tensor:
        """(B, F, D) -> (B, 1, D): one of the F rows for each sample."""
        rows = torch.randint(values.shape[1], (len(values),), generator=self.generator).to(values.device)
        return values[torch.arange(len(values), device=values.device), rows][:, None]

    def swap(self, values: Tensor, other: Tensor, p: float) -> Tensor:
        """Each sample of (B, ...) is replaced by `other` (1, ...) with chance `p`."""
        chosen = torch.rand(len(values), generator=self.generator).to(values.device) < p
        return torch.where(chosen.view(-1, *[1] * (values.ndim - 1)), other.to(values), values)

    def drop(self, values: Tensor, p: float) -> Tensor:
        """Each sample of (B, ...) is replaced by zeros with chance `p`."""
        return self.swap(values, torch.zeros_like(values[:1]), p)

    def seed(self) -> int:
        """A number to seed what cannot be handed a generator."""
        return int(torch.randint(2**62, (), generator=self.generator))
