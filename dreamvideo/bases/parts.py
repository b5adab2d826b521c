"""The parts that families around AutoencoderKL and CLIP share: reading them, and random tiny ones."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from dreamvideo.bases.base import Parts

__all__ = ["load_image_encoder", "load_parts", "tiny_parts"]

# ModelScopeT2V's noise (official configs): betas (linspace(sqrt(0.00085), sqrt(0.0120), 1000))^2. With these
# settings 50 DDIM steps are t = 981, 961, ..., 1 and the last one ends at abar_0, as in the official sampler.
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def load_parts(
    folder: str,
    denoiser: nn.Module,
    *,
    dtype: torch.dtype,
    device: str,
    image_encoder: str | None,
    scheduler: Any = None,
) -> Parts:
    """Read what stands beside the denoiser in a folder in diffusers' layout.

    `image_encoder` is a folder of its own; without one, the base's subfolder `image_encoder` is read if it exists.
    `scheduler` stands in for the folder's own.
    """
    return Parts(
        denoiser=denoiser.to(device),
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype).to(device),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype).to(device),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        scheduler=scheduler or DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
        image_encoder=load_image_encoder(folder, image_encoder, dtype=dtype, device=device),
    )


def load_image_encoder(
    folder: str | Path, image_encoder: str | None, *, dtype: torch.dtype, device: str
) -> CLIPVisionModelWithProjection | None:
    """The image encoder that is named, or the one that lies in the base's folder, or none."""
    if image_encoder is None and (Path(folder) / "image_encoder").is_dir():
        image_encoder = str(Path(folder) / "image_encoder")
    if image_encoder is None:
        return None
    return CLIPVisionModelWithProjection.from_pretrained(image_encoder, dtype=dtype).to(device)


def tiny_parts(seed: int, denoiser: Callable[[], nn.Module], *, scheduler: Any = None) -> Parts:
    """Random parts around a tiny denoiser: pixels / 4 = latents, 32-wide text states, 24-wide image vectors.

    `scheduler` stands in for one with ModelScopeT2V's noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = denoiser()
        # Layers that start at zero would make a random base ignore half of its parts.
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 16, 16),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
        )
        text = CLIPTextConfig(
            vocab_size=514,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            projection_dim=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        )
        return Parts(
            denoiser=model,
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=_byte_tokenizer(),
            scheduler=scheduler or DDIMScheduler(**_SCHEDULER),
            image_encoder=CLIPVisionModelWithProjection(vision),
        )


def _byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: one token a byte, so it reads any text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    # CLIP's byte-level BPE writes printable bytes as themselves and the rest from code point 256 on.
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(hidden))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: place for place, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)
