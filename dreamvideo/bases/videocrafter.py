"""VideoCrafter2 (Chen et al. 2024), from its published checkpoint, on `UNet3DConditionModel`.

Its denoiser is ModelScopeT2V's with other names in two places, the transformer over frames behind the first
convolution (`init_attn`) and the downsamplers; the projections of its other transformers are linear, as they are in
diffusers. What is left:

- A condition on the frame rate, added to what the time embedding says. Its rate is the same in every call, so it is a
  constant, and the constant is added to the bias of the embedding's last layer.
- `use_scale`: latents are multiplied by s_t while noise is added, x_t = sqrt(abar_t) s_t x_0 + sqrt(1 - abar_t) eps.
  With r_t^2 = abar_t s_t^2 + 1 - abar_t, x_t / r_t is an ordinary process whose abar is abar_t s_t^2 / r_t^2. That is
  the process of this base; its denoiser is handed r_t times its input. Noise, losses and DDIM without fresh noise
  (eta = 0) are the official ones. The official script samples with eta = 1, which no sampler here does.

A reference is MODEL+CHECKPOINT: a base around the same text encoder (OpenCLIP ViT-H/14 without its last block, of
Stable Diffusion 2 or ModelScopeT2V), whose tokenizer and configurations are used, and the folder of `model.ckpt`, from
which all weights come. VideoCrafter1 has learned relative positions, which diffusers' class has no place for.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamvideo.adapters.ports import sharing
from dreamvideo.bases.base import Defaults, Origin, Parts, VideoBase
from dreamvideo.bases.parts import load_image_encoder, load_parts, tiny_parts
from dreamvideo.bases.unet3d import TemporalConvLayer, TransformerTemporalModel
from dreamvideo.errors import BadFile
from dreamvideo.official.checkpoint import naming, read_data, tensors_of
from dreamvideo.official.unet import unet_of

__all__ = ["FAMILY"]

_CHECKPOINT = "model.ckpt"
_FPS = 28
"""The official script's condition on the frame rate."""
_VAE_SCALE = 0.18215

# Official config: abar of Stable Diffusion; s falls evenly from 1 to 0.7 over the first 400 times and stays there.
_ABAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
_SIGNAL = torch.cat([torch.linspace(1, 0.7, 400, dtype=torch.float64), torch.full((600,), 0.7, dtype=torch.float64)])
_INPUT = (_ABAR * _SIGNAL**2 + 1 - _ABAR).sqrt()
"""r_t."""

# OpenCLIP's names of a block's layers -> those of transformers; its joint projection of q, k and v is cut in three.
_TEXT = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _scaled(x: Tensor, t: Tensor) -> Tensor:
    """r_t x, for x (B, C, F, h, w) and t (B,) or ()."""
    return x * _INPUT.to(x.device, x.dtype)[t.to(x.device)].view(-1, 1, 1, 1, 1)


class VideoCrafterUNet(UNet3DConditionModel):
    """diffusers' denoiser by another name: a folder of it must not be taken for one that wants its input as it is."""

    stock: ClassVar[type[nn.Module]] = UNet3DConditionModel
    ports: ClassVar[tuple[str, ...]] = ()


class VideoCrafterScheduler(DDIMScheduler):
    """DDIM of the ordinary process; a stock pipeline asks it to bring inputs to the denoiser's scale."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int) -> Tensor:
        return _scaled(sample, torch.as_tensor(timestep))


class VideoCrafter(VideoBase):
    """VideoCrafter2, conditioned on 28 frames per second."""

    family = "videocrafter"
    tiny_name = "tiny-videocrafter"
    denoiser_class = "VideoCrafterUNet"
    addition = "model.ckpt"
    names: ClassVar = {
        "ali-vilab/text-to-video-ms-1.7b+VideoCrafter/VideoCrafter2": (
            "Apache-2.0 with a clause for research only (VideoCrafter)"
        ),
    }
    image_encoder_id = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    time_modules = (TransformerTemporalModel, TemporalConvLayer, VideoCrafterUNet)
    # As in the other family of this denoiser; here its last bias holds the frame rate, too.
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
    ) -> "VideoCrafter":
        if addition is None:
            denoiser = UNet3DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
            scheduler = VideoCrafterScheduler.from_pretrained(folder, subfolder="scheduler")
            parts = load_parts(
                folder, denoiser, dtype=dtype, device=device, image_encoder=image_encoder, scheduler=scheduler
            )
        else:
            parts = _read(Path(folder), Path(addition) / _CHECKPOINT, dtype, device, image_encoder)
        side = parts.factor * parts.denoiser.config.sample_size
        # Published for 320 x 512 pixels; the denoiser's config has room for one of the two.
        width = 512 if side == 320 else side
        return cls(origin, parts=parts, defaults=Defaults(frames=16, height=side, width=width, fps=10, guidance=12.0))

    @classmethod
    def tiny(cls, seed: int) -> "VideoCrafter":
        def denoiser() -> nn.Module:
            return UNet3DConditionModel(
                sample_size=4,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
                layers_per_block=1,
                cross_attention_dim=32,
                attention_head_dim=8,
            )

        defaults = Defaults(frames=4, height=16, width=16, fps=10, steps=4)
        origin = Origin(name=cls.tiny_name, reference=cls.tiny_name)
        return cls(origin, parts=tiny_parts(seed, denoiser, scheduler=_scheduler()), defaults=defaults)

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        with self.givens.using({"per_text": sharing(x_t, text)}):
            return self.parts.denoiser(_scaled(x_t, t), t, text, return_dict=False)[0]

    def pipeline(self) -> Any:
        # Pipelines bring along much that nothing else here needs.
        from diffusers import TextToVideoSDPipeline

        return TextToVideoSDPipeline(**self.parts.stock)


def _scheduler() -> VideoCrafterScheduler:
    abar = _ABAR * _SIGNAL**2 / _INPUT**2
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return VideoCrafterScheduler(
        trained_betas=(1 - abar / before).tolist(),
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def _read(model: Path, checkpoint: Path, dtype: torch.dtype, device: str, image_encoder: str | None) -> Parts:
    """All parts from the published checkpoint; `model` is the folder that gives configurations and the tokenizer.

    Raises:
        BadFile: unreadable, not exactly the tensors of VideoCrafter2, or another schedule of the signal.
    """
    data = read_data(checkpoint)
    # Some of the official trainer's checkpoints are DeepSpeed's, which its loader unwraps as well.
    wrapped = data.get("module") if isinstance(data, dict) else None
    with naming(checkpoint):
        tensors, _ = tensors_of(wrapped or data)
        tensors = {name.removeprefix("_forward_module."): tensor for name, tensor in tensors.items()}
        signal = tensors.get("scale_arr")
        # The official buffer is longer than the process; only its first thousand are ever looked up.
        if signal is not None and not torch.allclose(signal[:1000].double(), _SIGNAL, atol=1e-6):
            raise BadFile("its scale_arr is not VideoCrafter2's, from 1 to 0.7 over 400 times")
        denoiser = _denoiser(_within(tensors, "model.diffusion_model."), dtype)
        text_encoder = _text_encoder(model / "text_encoder", _within(tensors, "cond_stage_model.model."))
        vae = _autoencoder(model, _within(tensors, "first_stage_model."), dtype)
    return Parts(
        denoiser=denoiser.to(device),
        vae=vae.to(device),
        text_encoder=text_encoder.to(device, dtype),
        tokenizer=CLIPTokenizer.from_pretrained(model, subfolder="tokenizer"),
        scheduler=_scheduler(),
        image_encoder=load_image_encoder(model, image_encoder, dtype=dtype, device=device),
    )


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One model of the checkpoint.

    Raises:
        BadFile: there is none.
    """
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        raise BadFile(f"no tensor {prefix}*: not a checkpoint of VideoCrafter2")
    return found


def _denoiser(tensors: dict[str, Tensor], dtype: torch.dtype) -> UNet3DConditionModel:
    if any(".relative_position_" in name for name in tensors):
        raise BadFile("VideoCrafter1's relative positions have no place in UNet3DConditionModel; take VideoCrafter2")
    rate = [f"fps_embedding.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    last = "time_embed.2.bias"
    for name in (*rate, last):
        if name not in tensors:
            raise BadFile(f"no tensor {name}: not a checkpoint of VideoCrafter2")
    named = {
        # ModelScopeT2V's names: its downsamplers stand in no slot of their own.
        re.sub(r"^(input_blocks\.\d+)\.0\.op\.", r"\1.op.", name.replace("init_attn.0.", "input_blocks.0.1.")): tensor
        for name, tensor in tensors.items()
        if name not in rate
    }
    weight, bias, *second = (tensors[name].float() for name in rate)
    wave = get_timestep_embedding(torch.tensor([_FPS]), weight.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0)
    constant = F.linear(F.silu(F.linear(wave, weight, bias)), *second)
    named[last] = named[last].float() + constant[0]
    model = unet_of({name: tensor.to(dtype) for name, tensor in named.items()})
    model.register_to_config(sample_size=40)
    return model


def _autoencoder(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> AutoencoderKL:
    """The official autoencoder as diffusers reads it, which says nothing of what is missing.

    Raises:
        BadFile: it does not fit the configuration in `folder`.
    """
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    named = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items() if name.startswith(parts)}
    config = AutoencoderKL.load_config(str(folder), subfolder="vae")
    with torch.device("meta"):
        wanted = len(AutoencoderKL.from_config(config).state_dict())
    if len(named) != wanted:
        raise BadFile(f"its autoencoder has {len(named)} tensors, that of {folder} has {wanted}")
    try:
        vae = AutoencoderKL.from_single_file(named, config=str(folder), subfolder="vae", torch_dtype=dtype)
    except (ValueError, KeyError) as error:
        raise BadFile(f"its autoencoder is not the one that {folder} is configured for: {str(error)[:200]}") from error
    vae.register_to_config(scaling_factor=_VAE_SCALE)
    return vae


def _text_encoder(folder: Path, tensors: Mapping[str, Tensor]) -> CLIPTextModel:
    """OpenCLIP's text tower without its last block, in transformers' names.

    Raises:
        BadFile: it does not fit the configuration in `folder`.
    """
    model = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    state = {
        "embeddings.token_embedding.weight": tensors.get("token_embedding.weight"),
        "embeddings.position_embedding.weight": tensors.get("positional_embedding"),
        "final_layer_norm.weight": tensors.get("ln_final.weight"),
        "final_layer_norm.bias": tensors.get("ln_final.bias"),
    }
    blocks = len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")})
    if blocks != model.config.num_hidden_layers + 1:
        raise BadFile(f"its text encoder has {blocks} blocks; {folder} must be configured for all but the last of them")
    for number in range(blocks - 1):
        theirs, ours = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        for kind in ("weight", "bias"):
            joint = tensors.get(f"{theirs}.attn.in_proj_{kind}", torch.empty(3)).chunk(3)
            state |= {f"{ours}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", joint, strict=True)}
            state |= {f"{ours}.{name}.{kind}": tensors.get(f"{theirs}.{layer}.{kind}") for layer, name in _TEXT.items()}
    # Versions of transformers differ in whether the tower is a module of its own.
    wanted = {name.removeprefix("text_model."): (name, tensor.shape) for name, tensor in model.state_dict().items()}
    for name, (_, shape) in wanted.items():
        tensor = state.get(name)
        if tensor is None or tensor.shape != shape:
            raise BadFile(f"its text encoder has no {name} of shape {list(shape)}, which {folder} is configured for")
    model.load_state_dict({wanted[name][0]: tensor for name, tensor in state.items()})
    return model


FAMILY = VideoCrafter
