"""`UNetMotionModel`: AnimateDiff (Guo et al. 2023), a motion module between the layers of an image model.

It is read from one folder in which both are merged already, or from two, IMAGE_MODEL+MOTION_ADAPTER. Its temporal
blocks add sinusoidal frame positions after the norm; their ports lie on the residual stream before it. Residual blocks
normalise each frame by itself, as the official code does from its second version on; version 1 did so over the clip.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D as StockMotionTransformer
from torch import Tensor, nn

from dreamvideo.adapters.ports import Givens, sharing
from dreamvideo.bases.base import Defaults, Origin, VideoBase
from dreamvideo.bases.parts import load_parts, tiny_parts
from dreamvideo.errors import BadInput, Unsupported

__all__ = ["FAMILY"]

# The noise that motion modules were trained with (official code): linear in beta, unlike Stable Diffusion's.
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


class AnimateDiffTransformer3D(StockMotionTransformer):
    """diffusers' motion module, skipped for one frame where the givens ask for that."""

    stock: ClassVar[type[nn.Module]] = StockMotionTransformer
    ports: ClassVar[tuple[str, ...]] = ()
    givens: Givens

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        if self.givens.bypass_time and num_frames == 1:
            return hidden_states
        return super().forward(
            hidden_states, encoder_hidden_states, timestep, class_labels, num_frames, cross_attention_kwargs
        )


class AnimateDiff(VideoBase):
    """AnimateDiff on Stable Diffusion 1.5 and its fine-tunes."""

    family = "animatediff"
    tiny_name = "tiny-animatediff"
    denoiser_class = "UNetMotionModel"
    addition = "MotionAdapter"
    names: ClassVar = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5+guoyww/animatediff-motion-adapter-v1-5-2": (
            "CreativeML-OpenRAIL-M (Stable Diffusion), Apache-2.0 (AnimateDiff)"
        ),
    }
    image_encoder_id = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    time_modules = (AnimateDiffTransformer3D,)

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
    ) -> "AnimateDiff":
        if addition is None:
            denoiser = UNetMotionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
        else:
            denoiser = _merged(folder, addition, dtype)
        scheduler = _scheduler(folder, addition)
        parts = load_parts(
            folder, denoiser, dtype=dtype, device=device, image_encoder=image_encoder, scheduler=scheduler
        )
        side = parts.factor * (denoiser.config.sample_size or 64)
        frames = min(16, denoiser.config.motion_max_seq_length)
        defaults = Defaults(frames=frames, height=side, width=side, fps=8, guidance=7.5)
        return cls(origin, parts=parts, defaults=defaults)

    @classmethod
    def tiny(cls, seed: int) -> "AnimateDiff":
        def denoiser() -> nn.Module:
            return UNetMotionModel(
                sample_size=4,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
                up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=32,
                num_attention_heads=4,
                motion_num_attention_heads=4,
            )

        defaults = Defaults(frames=4, height=16, width=16, fps=8, steps=4, guidance=7.5)
        origin = Origin(name=cls.tiny_name, reference=cls.tiny_name)
        return cls(origin, parts=tiny_parts(seed, denoiser, scheduler=DDIMScheduler(**_SCHEDULER)), defaults=defaults)

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        # This denoiser wants the text once for every frame; elsewhere only its pipeline repeats it.
        every = text.repeat_interleave(x_t.shape[2], dim=0)
        with self.givens.using({"per_text": sharing(x_t, text)}):
            return self.parts.denoiser(x_t, t, every, return_dict=False)[0]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        limit = self.parts.denoiser.config.motion_max_seq_length
        if frames > limit:
            raise Unsupported(f"--frames {frames}: base {self.name} has {limit} frame positions and can take no more")
        return super().latent_shape(frames, height, width)

    def pipeline(self) -> Any:
        # Pipelines bring along much that nothing else here needs.
        from diffusers import AnimateDiffPipeline

        return AnimateDiffPipeline(**self.parts.stock, motion_adapter=None)


def _merged(folder: str, addition: str, dtype: torch.dtype) -> UNetMotionModel:
    """An image model with motion modules put into it.

    Raises:
        BadInput: the folder holds no image model, or the modules were made for another one.
    """
    config = json.loads((Path(folder) / "unet" / "config.json").read_text(encoding="utf-8"))
    if config.get("_class_name") != "UNet2DConditionModel":
        raise BadInput(
            f"{folder}: its denoiser is a {config.get('_class_name')}, motion modules go into a UNet2DConditionModel"
        )
    image = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
    motion = MotionAdapter.from_pretrained(addition, torch_dtype=dtype)
    # diffusers builds the modules with the image model's groups, whatever the adapter says; no tensor would show it.
    groups, wanted = motion.config.motion_norm_num_groups, image.config.norm_num_groups
    if groups != wanted:
        raise BadInput(f"{addition}: normalises in {groups} groups, the denoiser of {folder} in {wanted}")
    try:
        return UNetMotionModel.from_unet2d(image, motion)
    except (ValueError, RuntimeError) as error:
        widths = motion.config.block_out_channels
        raise BadInput(
            f"{addition}: made for a denoiser of widths {list(widths)}, which that of {folder} is not: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def _scheduler(folder: str, addition: str | None) -> DDIMScheduler:
    """The addition's own noise, or the motion modules' usual one; of a merged model, what its folder says."""
    if addition is not None and (Path(addition) / "scheduler").is_dir():
        return DDIMScheduler.from_pretrained(addition, subfolder="scheduler")
    if not (Path(folder) / "scheduler").is_dir():
        return DDIMScheduler(**_SCHEDULER)
    changes = {} if addition is None else _SCHEDULER
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **changes)


FAMILY = AnimateDiff
