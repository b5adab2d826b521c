"""The denoisers: pictures first, then video, inflated from it or by motion modules (Ho et al. 2020; noise as in
ModelScopeT2V; 10 % of the captions are dropped).

A step's error is weighted by 1 / sqrt(SNR) (Yu et al. 2023, "Debias the training of diffusion models"): what moves
where is decided in much noise, which the error of the noise alone hardly counts. Little noise counts 5 / SNR (Hang et
al. 2023, min-SNR).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNetMotionModel
from models import make_image_denoiser, make_motion_denoiser, make_scheduler, make_video_denoiser
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from dreamvideo.bases.text import tokenize
from dreamvideo.diffusion import process_of
from stages.stage import Setup, Stage, mixed, sheet

__all__ = ["Images", "MotionModule", "Video"]

_MIN_SNR = 5.0
_DROPPED = 0.1
_OFFSET = 0.1
_SLICE = 256
"""Frames that pass the autoencoder at once."""


@dataclass
class _Chunk:
    """Examples that were rendered and encoded together."""

    name: tuple[str | int, ...]
    latents: Tensor  # (N, C, F, h, w), of deviation 1
    text: Tensor  # (N, L, D)


class _Denoising(Stage):
    """What the three have in common."""

    averaged = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.world = setup.world(narrow=setup.preset.narrow)
        self.vae = AutoencoderKL.from_pretrained(setup.made("vae")).to(setup.device).requires_grad_(False)
        self.clip = CLIPModel.from_pretrained(setup.made("clip")).to(setup.device).requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(setup.made("clip"))
        self.scheduler = make_scheduler()
        self.process = process_of(self.scheduler.config, self.scheduler.alphas_cumprod)
        self.empty = self.encode([""])
        self.chunks: dict[bool, _Chunk] = {}

    # -- data -----------------------------------------------------------------------------------------------------

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Text states (B, L, D), each different caption encoded once."""
        different = list(dict.fromkeys(captions))
        ids = tokenize(self.tokenizer, different, {}, first=len(self.tokenizer)).to(self.setup.device)
        with torch.no_grad():
            states = self.clip.text_model(input_ids=ids).last_hidden_state.float()
        return states[[different.index(caption) for caption in captions]]

    @torch.no_grad()
    def to_latents(self, pixels: Tensor, random: torch.Generator) -> Tensor:
        """Pixels (B, 3, F, H, W) -> latents (B, C, F, h, w)."""
        frames = pixels.transpose(1, 2).flatten(0, 1)
        posteriors = [self.vae.encode(part).latent_dist for part in frames.split(_SLICE)]
        mean, std = (torch.cat([getattr(p, name) for p in posteriors]).float() for name in ("mean", "std"))
        latents = mean + std * torch.randn(mean.shape, generator=random, device=mean.device)
        return self.vae.config.scaling_factor * latents.unflatten(0, (len(pixels), -1)).transpose(1, 2)

    def render(self, n: int, random: torch.Generator, *, still: bool) -> tuple[Tensor, list[str]]:
        """Pixels (B, 3, F, H, W) and captions. Half of the stills are out of clips: any pose, any tilt."""
        parts = mixed(self.world, n, random) if still else [self.world.clips(n, self.setup.preset.frames, random)]
        return torch.cat([part.pixels for part in parts]), [caption for part in parts for caption in part.captions]

    def chunk(self, n: int, *names: str | int, still: bool) -> _Chunk:
        """Fresh examples; their name makes them."""
        pixels, captions = self.render(n, self.setup.random(self.name, "render", still, *names), still=still)
        latents = self.to_latents(pixels, self.setup.noise(self.name, "encode", still, *names))
        return _Chunk(names, latents, self.encode(captions))

    def batch(self, step: int, n: int, size: int, *, still: bool) -> tuple[Tensor, Tensor]:
        """Latents and text of the `step`-th batch of `n`, from chunks of `size`."""
        size = max(n, size // n * n)
        turn, place = divmod(step, self.how.reuse * size // n)
        if still not in self.chunks or self.chunks[still].name != (turn,):
            self.chunks[still] = self.chunk(size, turn, still=still)
        chunk, (epoch, part) = self.chunks[still], divmod(place, size // n)
        order = torch.randperm(size, generator=self.setup.random(self.name, "order", turn, epoch))
        rows = order[part * n : (part + 1) * n].to(self.setup.device)
        return chunk.latents[rows], chunk.text[rows]

    # -- learning -------------------------------------------------------------------------------------------------

    def still(self, step: int) -> bool:
        """Does this step learn from pictures?"""
        return False

    def predict(self, model: nn.Module, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return model(x_t, t, text, return_dict=False)[0].float()

    def samples(self, step: int) -> int:
        return self.how.batch * (4 if self.still(step) and not isinstance(self, Images) else 1)

    def terms(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        n, still = self.samples(step), self.still(step)
        x0, text = self.batch(step, n, self.how.chunk * n // self.how.batch, still=still)
        return {"noise": self.loss(model, x0, text, self.setup.noise(self.name, "noise", step))}

    def loss(self, model: nn.Module, x0: Tensor, text: Tensor, random: torch.Generator) -> Tensor:
        def draw(maker, *shape: int) -> Tensor:
            return maker(shape, generator=random, device=x0.device)

        n = len(x0)
        # One from each n-th of all times, which steadies the loss.
        t = ((torch.arange(n, device=x0.device) + draw(torch.rand, n)) / n * self.process.steps).long()
        noise = draw(torch.randn, *x0.shape) + _OFFSET * draw(torch.randn, *x0.shape[:3], 1, 1)
        dropped = draw(torch.rand, n) < _DROPPED
        text = torch.where(dropped[:, None, None], self.empty, text)
        error = self.predict(model, self.process.noisy(x0, noise, t), t, text) - noise
        signal, sigma = self.process.signal_and_noise(t, t.float())
        weight = torch.minimum(sigma / signal, _MIN_SNR * (sigma / signal).square())
        return (weight * error.square().flatten(1).mean(dim=1)).mean()

    @torch.no_grad()
    def judge(self, model: nn.Module) -> dict[str, float]:
        """The loss on examples and noise that are always the same."""
        chunk = self.chunk(128, "held-out", still=self.still(0))
        random = self.setup.noise(self.name, "judge")
        parts = zip(chunk.latents.split(32), chunk.text.split(32), strict=True)
        return {"loss": sum(self.loss(model, x0, text, random).item() for x0, text in parts) / 4}

    def write(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)

    # -- looking --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, model: nn.Module, captions: Sequence[str], *, frames: int, steps: int = 25, guidance: float = 5.0
    ) -> Tensor:
        """Pixels (B, 3, F, H, W) by DDIM with guidance."""
        n, side = len(captions), self.setup.preset.size // 4
        shape, random = (n, self.setup.preset.latents, frames, side, side), self.setup.noise(self.name, "preview")
        x = torch.randn(shape, generator=random, device=self.setup.device)
        text = torch.cat([self.empty.expand(n, -1, -1), self.encode(captions)])
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            times = t.to(x.device).expand(2 * n)
            without, given = self.predict(model, torch.cat([x, x]), times, text).chunk(2)
            x = self.scheduler.step(without + guidance * (given - without), t, x).prev_sample
        frames_of_all = x.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor
        pixels = torch.cat([self.vae.decode(part).sample for part in frames_of_all.split(_SLICE)])
        return pixels.float().unflatten(0, (n, frames)).transpose(1, 2)

    def preview(self, model: nn.Module) -> Image.Image:
        still = self.still(0)
        _, captions = self.render(48 if still else 12, self.setup.random("preview"), still=still)
        pixels = self.sample(model, captions, frames=1 if still else self.setup.preset.frames)
        return sheet(pixels, captions, columns=8 if still else 2)


class Images(_Denoising):
    """The image denoiser, from nothing."""

    name = "image"

    def make(self) -> UNet2DConditionModel:
        return make_image_denoiser(self.setup.preset)

    def still(self, step: int) -> bool:
        return True

    def predict(self, model: nn.Module, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return model(x_t[:, :, 0], t, text, return_dict=False)[0].float()[:, :, None]


class Video(_Denoising):
    """The video denoiser: all of it learns, seven steps of eight from clips, one from pictures."""

    name = "video"

    def make(self) -> nn.Module:
        image = UNet2DConditionModel.from_pretrained(self.setup.made("image"))
        return make_video_denoiser(self.setup.preset, image)

    def still(self, step: int) -> bool:
        return step % 8 == 7


class MotionModule(_Denoising):
    """Motion modules in the image denoiser, which stays as it is."""

    name = "motion"

    def make(self) -> UNetMotionModel:
        image = UNet2DConditionModel.from_pretrained(self.setup.made("image"))
        model = make_motion_denoiser(self.setup.preset, image)
        model.freeze_unet2d_params()
        return model

    def predict(self, model: nn.Module, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return super().predict(model, x_t, t, text.repeat_interleave(x_t.shape[2], dim=0))
