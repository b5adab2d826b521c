"""`UNet2DConditionModel`: an image model that runs on video, Tune-A-Video's base (Wu et al. 2022).

Convolutions, normalisation and attention work on every frame by itself; for one frame the base is Stable Diffusion.
What a method needs beyond that lies open: self-attention whose keys and values come from other frames (`reaching`),
and behind every transformer block a port `time`, whose adapters see the residual stream with the frames as tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from diffusers import UNet2DConditionModel as StockUNet
from torch import Tensor, nn

from dreamvideo.adapters.attention import Control
from dreamvideo.adapters.ports import BasicTransformerBlock as PortedTransformerBlock
from dreamvideo.adapters.ports import Condition, Givens, Reach, grafts_on, rematerialised, sharing
from dreamvideo.bases.base import Defaults, Origin, VideoBase
from dreamvideo.bases.parts import load_parts, tiny_parts
from dreamvideo.errors import Unsupported

__all__ = ["FAMILY"]


class UNet2DConditionModel(StockUNet):
    """diffusers' image denoiser, given images (B, C, h, w) or, frame by frame, videos (B, C, F, h, w)."""

    # By this a pipeline says in model_index.json whose class a part is: what is saved is diffusers' own model.
    __module__ = StockUNet.__module__
    stock: ClassVar[type[nn.Module]] = StockUNet
    ports: ClassVar[tuple[str, ...]] = ()
    givens: Givens

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        batch, video = len(sample), sample.ndim == 5
        # Every call says it anew, so that none sees the frames of another.
        self.givens.frames = frames = sample.shape[2] if video else 1
        self.givens.per_text = sharing(sample, encoder_hidden_states) if video else 1
        if video:
            sample = sample.transpose(1, 2).flatten(0, 1)
            timestep = torch.as_tensor(timestep, device=sample.device).expand(batch).repeat_interleave(frames)
            encoder_hidden_states = encoder_hidden_states.repeat_interleave(frames, dim=0)
        said = super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs,
            added_cond_kwargs=added_cond_kwargs,
            down_block_additional_residuals=down_block_additional_residuals,
            mid_block_additional_residual=mid_block_additional_residual,
            down_intrablock_additional_residuals=down_intrablock_additional_residuals,
            encoder_attention_mask=encoder_attention_mask,
            return_dict=return_dict,
        )
        if video:
            images = said[0].unflatten(0, (batch, frames)).transpose(1, 2)
            return type(said)(sample=images) if return_dict else (images,)
        return said


class BasicTransformerBlock(PortedTransformerBlock):
    """The ported block with one more port, `time`, and self-attention that reaches other frames."""

    ports: ClassVar[tuple[str, ...]] = ("attn1", "attn2", "ff", "time")

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        # Read here and handed on, as the condition is: see `PortedTransformerBlock.forward`.
        frames, reach = self.givens.frames, self.givens.reach
        seen = None if reach == "frame" else partial(_seen, frames=frames, reach=reach)
        return rematerialised(
            self.givens,
            self.over_frames,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            encoder_attention_mask,
            cross_attention_kwargs or {},
            self.givens.condition,
            self.givens.control,
            frames,
            self.givens.per_text,
            seen,
            self.givens.bypass_time and frames == 1,
        )

    def over_frames(
        self,
        x: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        text_mask: Tensor | None,
        options: dict[str, Any],
        given: Condition | None,
        control: Control | None,
        frames: int,
        per_text: int,
        seen: Callable[[Tensor], Tensor] | None,
        bypass_time: bool,
    ) -> Tensor:
        """The branches within frames, then, unless time is bypassed, what stands on the port `time`."""
        x = self.branches(x, text, mask, text_mask, options, given, control, per_text, seen)
        # Nobody on the port: no need to turn the stream round.
        if bypass_time or not [*grafts_on(self, "time")]:
            return x
        pixels = x.shape[1]
        stream = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (B h w, F, width)
        stream = self.port("time", stream, torch.zeros_like(stream), given)
        return stream.unflatten(0, (-1, pixels)).transpose(1, 2).flatten(0, 1)


def _seen(x: Tensor, *, frames: int, reach: Reach) -> Tensor:
    """The tokens (B F, n L, width) at which each frame's self-attention looks, of the stream (B F, L, width)."""
    x = x.unflatten(0, (-1, frames))
    first = x[:, :1].expand_as(x)
    if reach == "first":
        return first.flatten(0, 1)
    # Frame 0 has none before it and sees itself twice, as in the official code.
    before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    return torch.cat([first, before], dim=2).flatten(0, 1)


class Inflated(VideoBase):
    """Stable Diffusion 1 or 2, run on video frame by frame."""

    family = "inflated"
    tiny_name = "tiny-inflated"
    denoiser_class = "UNet2DConditionModel"
    names: ClassVar = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML-OpenRAIL-M",
        "CompVis/stable-diffusion-v1-4": "CreativeML-OpenRAIL-M",
    }
    image_encoder_id = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    time_modules = (UNet2DConditionModel, BasicTransformerBlock)
    reaches = ("frame", "sparse-causal", "first")

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        addition: str | None,
        origin: Origin,
        dtype: torch.dtype,
        device: str,
        image_encoder: str | None,
    ) -> "Inflated":
        denoiser = StockUNet.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
        extras = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")
        if any(denoiser.config[extra] is not None for extra in extras):
            raise Unsupported(f"base {origin.name}: its denoiser wants more than text; take Stable Diffusion 1 or 2")
        parts = load_parts(folder, denoiser, dtype=dtype, device=device, image_encoder=image_encoder)
        if denoiser.config.in_channels != parts.vae.config.latent_channels:
            raise Unsupported(f"base {origin.name}: its denoiser wants an image beside the noise, as for inpainting")
        side = parts.factor * (denoiser.config.sample_size or 64)
        # Tune-A-Video's frames and guidance (official configs).
        defaults = Defaults(frames=24, height=side, width=side, fps=8, guidance=12.5)
        return cls(origin, parts=parts, defaults=defaults)

    @classmethod
    def tiny(cls, seed: int) -> "Inflated":
        def denoiser() -> nn.Module:
            return StockUNet(
                sample_size=4,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=32,
                attention_head_dim=4,
            )

        defaults = Defaults(frames=4, height=16, width=16, fps=8, steps=4)
        origin = Origin(name=cls.tiny_name, reference=cls.tiny_name)
        return cls(origin, parts=tiny_parts(seed, denoiser), defaults=defaults)

    def axis(self, path: str) -> Literal["space"]:
        return "space"

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.parts.denoiser(x_t, t, text, return_dict=False)[0]

    def pipeline(self) -> Any:
        """The stock image pipeline; with 5-dimensional `latents` and `output_type="latent"` it samples a video."""
        # Pipelines bring along much that nothing else here needs.
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            **self.parts.stock,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


FAMILY = Inflated
