"""The autoencoder: pixels <-> latents of a quarter of the side."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from models import make_autoencoder
from PIL import Image
from torch import Tensor

from stages.stage import Setup, Stage, mixed, sheet

__all__ = ["Autoencoder"]


class Autoencoder(Stage):
    """|x - x'| + (x - x')^2 + half the error of the gradients + 1e-6 KL.

    No judge of realism takes part: at this size it is sharp enough without, and what it draws is true.
    """

    name = "vae"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.world = setup.world()

    def make(self) -> AutoencoderKL:
        return make_autoencoder(self.setup.preset)

    def pixels(self, *names: str | int, n: int) -> Tensor:
        parts = mixed(self.world, n, self.setup.random(self.name, *names))
        return torch.cat([part.pixels[:, :, 0] for part in parts])

    def terms(self, model: AutoencoderKL, step: int) -> dict[str, Tensor]:
        x = self.pixels(step, n=self.how.batch)
        posterior = model.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=self.setup.noise(self.name, step), device=x.device)
        error = model.decode(posterior.mean + posterior.std * noise).sample.float() - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return {
            "pixels": error.abs().mean() + error.square().mean(),
            "edges": edges / 4,
            "kl": 1e-6 * posterior.kl().mean(),
        }

    @torch.no_grad()
    def judge(self, model: AutoencoderKL) -> dict[str, float]:
        x = self.pixels("held-out", n=256)
        means = torch.cat([model.encode(part).latent_dist.mean for part in x.split(32)])
        error = torch.cat([model.decode(part).sample for part in means.split(32)]).float().clamp(-1, 1) - x
        psnr = 10 * torch.log10(4 / error.square().flatten(1).mean(dim=1))
        overall = 10 * torch.log10(4 / error.square().mean())
        return {"psnr": psnr.mean().item(), "psnr_of_mean_error": overall.item(), "latent_std": means.std().item()}

    def write(self, model: AutoencoderKL, folder: Path) -> None:
        # Denoisers want latents of deviation 1.
        model.register_to_config(scaling_factor=1 / self.judge(model)["latent_std"])
        model.save_pretrained(folder)

    @torch.no_grad()
    def preview(self, model: AutoencoderKL) -> Image.Image:
        x = self.pixels("preview", n=16)
        both = torch.stack([x, model(x).sample], dim=2)
        return sheet(both, ["as rendered, as decoded"] * 16, columns=4)
