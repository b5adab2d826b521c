"""`UNet3DConditionModel`: ModelScopeT2V 1.7B, ZeroScope, and every base in their layout.

The denoiser interleaves spatial transformers, temporal transformers and temporal convolutions. Its temporal
"cross-attention" is a second self-attention over frames, so it has a port like any other.
"""

from typing import Any, ClassVar

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer as StockTemporalConv
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel as StockTemporalTransformer
from torch import Tensor, nn

from dreamvideo.adapters.ports import Givens, rematerialised, sharing
from dreamvideo.bases.base import Defaults, Origin, VideoBase
from dreamvideo.bases.parts import load_parts, tiny_parts

__all__ = ["FAMILY", "TemporalConvLayer", "TransformerTemporalModel"]


class TransformerTemporalModel(StockTemporalTransformer):
    """diffusers' temporal transformer, skipped for one frame where the givens ask for that."""

    stock: ClassVar[type[nn.Module]] = StockTemporalTransformer
    ports: ClassVar[tuple[str, ...]] = ()
    givens: Givens

    def forward(
        self,
        hidden_states: Tensor,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        if self.givens.bypass_time and num_frames == 1:
            return (hidden_states,)
        return super().forward(
            hidden_states, num_frames=num_frames, cross_attention_kwargs=cross_attention_kwargs, return_dict=False
        )


class TemporalConvLayer(StockTemporalConv):
    """diffusers' temporal convolution, rematerialised or skipped where the givens ask for that."""

    stock: ClassVar[type[nn.Module]] = StockTemporalConv
    ports: ClassVar[tuple[str, ...]] = ()
    givens: Givens

    def forward(self, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        if self.givens.bypass_time and num_frames == 1:
            return hidden_states
        return rematerialised(self.givens, super().forward, hidden_states, num_frames)


class UNet3D(VideoBase):
    """ModelScopeT2V and its relatives."""

    family = "unet3d"
    tiny_name = "tiny"
    denoiser_class = "UNet3DConditionModel"
    names: ClassVar = {
        "ali-vilab/text-to-video-ms-1.7b": "CC-BY-NC-4.0",
        "damo-vilab/text-to-video-ms-1.7b": "CC-BY-NC-4.0",
        "cerspense/zeroscope_v2_576w": "CC-BY-NC-4.0",
        "cerspense/zeroscope_v2_XL": "CC-BY-NC-4.0",
    }
    image_encoder_id = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    time_modules = (TransformerTemporalModel, TemporalConvLayer)
    # The official list of spatial parameters lacks the time embedding, so it is tuned with the temporal ones.
    time_paths = ("time_embedding",)

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
    ) -> "UNet3D":
        denoiser = UNet3DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
        parts = load_parts(folder, denoiser, dtype=dtype, device=device, image_encoder=image_encoder)
        side = parts.factor * (denoiser.config.sample_size or 32)
        # DreamVideo samples 32 frames of 256 x 256 at 8 fps (paper, section 4.1).
        defaults = Defaults(frames=32, height=side, width=side, fps=8)
        return cls(origin, parts=parts, defaults=defaults)

    @classmethod
    def tiny(cls, seed: int) -> "UNet3D":
        def denoiser() -> nn.Module:
            return UNet3DConditionModel(
                sample_size=4,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
                layers_per_block=1,
                norm_num_groups=8,
                cross_attention_dim=32,
                attention_head_dim=8,
            )

        defaults = Defaults(frames=4, height=16, width=16, fps=8, steps=4)
        origin = Origin(name=cls.tiny_name, reference=cls.tiny_name)
        return cls(origin, parts=tiny_parts(seed, denoiser), defaults=defaults)

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        with self.givens.using({"per_text": sharing(x_t, text)}):
            return self.parts.denoiser(x_t, t, text, return_dict=False)[0]

    def pipeline(self) -> Any:
        # Pipelines bring along much that nothing else here needs.
        from diffusers import TextToVideoSDPipeline

        return TextToVideoSDPipeline(**self.parts.stock)


FAMILY = UNet3D
