"""Pixels -> latents and image vectors, for the families that use AutoencoderKL and CLIP."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SLICE", "decode_frames", "embed_images", "encode_frames"]

# OpenAI's and OpenCLIP's image statistics, RGB in [0, 1].
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SLICE = 8
"""Frames that pass an encoder at once; more costs memory and gains nothing."""
_PIXELS = 2 * 256 * 256
"""Pixels after which the same holds of the autoencoder."""


@torch.no_grad()
def encode_frames(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, F, H, W) in [-1, 1] -> posterior mean and deviation (B, C, F, h, w), scaled, frame by frame."""
    frames = pixels.transpose(1, 2).flatten(0, 1).to(vae.device, vae.dtype)
    posteriors = [vae.encode(part).latent_dist for part in frames.split(_at_once(*frames.shape[2:]))]
    mean, std = (torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "std"))
    scale = vae.config.scaling_factor
    batch = (len(pixels), pixels.shape[2])
    return tuple((scale * part.float()).unflatten(0, batch).transpose(1, 2) for part in (mean, std))  # type: ignore


@torch.no_grad()
def decode_frames(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, F, h, w) -> pixels (B, 3, F, H, W) in [-1, 1], float32, frame by frame."""
    frames = latents.transpose(1, 2).flatten(0, 1).to(vae.device, vae.dtype) / vae.config.scaling_factor
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    at_once = _at_once(*(factor * side for side in frames.shape[2:]))
    pixels = torch.cat([vae.decode(part).sample for part in frames.split(at_once)])
    return pixels.float().clamp(-1, 1).unflatten(0, (len(latents), latents.shape[2])).transpose(1, 2)


def _at_once(height: int, width: int) -> int:
    """Frames of that many pixels."""
    return max(1, min(SLICE, _PIXELS // (height * width)))


@torch.no_grad()
def embed_images(encoder: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, F, H, W) in [-1, 1] -> CLIP image vectors (B, F, D): projected, not normalised, float32."""
    frames = pixels.transpose(1, 2).flatten(0, 1).to(encoder.device, torch.float32)
    size = (encoder.config.image_size,) * 2
    frames = F.interpolate((frames + 1) / 2, size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v, device=frames.device).view(1, 3, 1, 1) for v in (_CLIP_MEAN, _CLIP_STD))
    vectors = [encoder(((part - mean) / std).to(encoder.dtype)).image_embeds.float() for part in frames.split(SLICE)]
    return torch.cat(vectors).unflatten(0, (len(pixels), pixels.shape[2]))
