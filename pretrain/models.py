"""The models of EmojiWorld: their sizes, made new, and an image denoiser inflated to video."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from dreamvideo import bases

__all__ = [
    "LENGTH",
    "PRESETS",
    "Learning",
    "Preset",
    "make_autoencoder",
    "make_clip",
    "make_dino",
    "make_image_denoiser",
    "make_motion_denoiser",
    "make_scheduler",
    "make_tokenizer",
    "make_video_denoiser",
    "millions",
]

LENGTH = 24
"""Tokens of a prompt."""


@dataclass(frozen=True)
class Learning:
    """How one stage learns."""

    batch: int
    lr: float
    chunk: int = 0
    """Examples that are rendered and encoded at once; 0: a batch."""
    reuse: int = 1
    """How often each is learned from before the next chunk."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """All sizes. Latents are the pixels' size / 4."""

    size: int
    """Pixels along a side."""
    frames: int = 8
    narrow: bool
    """Image, video and motion stage see the short list of subjects; the encoders always see all."""
    latents: int = 8
    vae: tuple[int, int, int]
    vae_layers: int = 1
    text: tuple[int, int] = (128, 3)
    """Width and layers, as for the next two."""
    vision: tuple[int, int] = (128, 4)
    dino: tuple[int, int] = (128, 4)
    patch: int = 4
    unet: tuple[int, ...]
    unet_layers: int = 1
    head: int = 16
    """Width of an attention head of the denoisers."""
    groups: int = 8
    """Of a denoiser's group norms. Few channels a group would erase brightness."""
    learning: Mapping[str, Learning]

    def sized(self, *, size: int | None, frames: int | None) -> "Preset":
        """With another picture size or number of frames, where one is given."""
        size = size or self.size
        return replace(self, size=size, patch=self.patch * size // self.size, frames=frames or self.frames)


PRESETS = {
    "cpu": Preset(
        size=32,
        narrow=True,
        vae=(32, 64, 64),
        unet=(64, 128),
        learning={
            "vae": Learning(batch=24, lr=1e-3),
            "clip": Learning(batch=128, lr=1e-3),
            "dino": Learning(batch=96, lr=1e-3),
            "judge": Learning(batch=128, lr=1e-3),
            "image": Learning(batch=32, lr=5e-4, chunk=1024, reuse=4),
            "video": Learning(batch=8, lr=6e-4, chunk=256, reuse=4),
            "motion": Learning(batch=16, lr=1e-3, chunk=256, reuse=4),
        },
    ),
    "gpu": Preset(
        size=64,
        narrow=False,
        vae=(64, 128, 128),
        text=(192, 4),
        vision=(192, 4),
        dino=(192, 4),
        patch=8,
        unet=(96, 192),
        unet_layers=1,
        head=32,
        learning={
            "vae": Learning(batch=128, lr=6e-4),
            "clip": Learning(batch=512, lr=1e-3),
            "dino": Learning(batch=384, lr=1e-3),
            "judge": Learning(batch=512, lr=1e-3),
            "image": Learning(batch=512, lr=8e-4),
            "video": Learning(batch=96, lr=5e-4, chunk=384, reuse=2),
            "motion": Learning(batch=96, lr=5e-4, chunk=384, reuse=2),
        },
    ),
}


def make_autoencoder(preset: Preset) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=preset.vae,
        layers_per_block=preset.vae_layers,
        norm_num_groups=4,
        latent_channels=preset.latents,
        sample_size=preset.size,
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM over ModelScopeT2V's betas, as every base of this project that predicts noise."""
    return DDIMScheduler.from_config(bases.load("tiny").parts.scheduler.config)


# -- encoders ---------------------------------------------------------------------------------------------------------


def make_tokenizer(vocabulary: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer for which every word of the vocabulary is one token; all else is spelled in bytes.

    The merges are those that byte-pair encoding learns from the words alone, until each is whole.
    """
    letters = [chr(code) for code in _byte_letters()]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    pretokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    pieces = {piece for word in vocabulary for piece, _ in pretokenizer.pre_tokenize_str(word.lower())}
    words = [[*piece[:-1], piece[-1] + "</w>"] for piece in sorted(pieces)]
    merges: list[tuple[str, str]] = []
    while pairs := [pair for word in words for pair in pairwise(word)]:
        # The first of the most frequent: the result must not depend on the order of a set.
        merges.append(max(sorted(set(pairs)), key=pairs.count))
        words = [_merged(word, merges[-1]) for word in words]
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocab = {token: place for place, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab, list(dict.fromkeys(merges)), model_max_length=LENGTH)


def _byte_letters() -> list[int]:
    """Code points as which byte-level BPE writes the 256 bytes: printable ones as themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*printable, *range(256, 512 - len(printable))]


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    done: list[str] = []
    for part in word:
        if done and (done[-1], part) == pair:
            done[-1] += part
        else:
            done.append(part)
    return done


def make_clip(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPModel:
    text, vision = (
        {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        | {"num_attention_heads": width // 32, "projection_dim": 128}
        for width, layers in (preset.text, preset.vision)
    )
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vision |= {"image_size": preset.size, "patch_size": preset.patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def make_dino(preset: Preset) -> Dinov2Model:
    width, layers = preset.dino
    return Dinov2Model(
        Dinov2Config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            image_size=preset.size,
            patch_size=preset.patch,
            layerscale_value=0.1,
        )
    )


# -- denoisers --------------------------------------------------------------------------------------------------------


def _unet(preset: Preset, kind: str) -> dict:
    """What the denoisers for images and for video agree on."""
    return {
        "sample_size": preset.size // 4,
        "in_channels": preset.latents,
        "out_channels": preset.latents,
        "block_out_channels": preset.unet,
        "layers_per_block": preset.unet_layers,
        "down_block_types": (f"CrossAttnDownBlock{kind}",) * len(preset.unet),
        "up_block_types": (f"CrossAttnUpBlock{kind}",) * len(preset.unet),
        "norm_num_groups": preset.groups,
        "cross_attention_dim": preset.text[0],
    }


def _heads(preset: Preset) -> tuple[int, ...]:
    return tuple(width // preset.head for width in preset.unet)


def make_image_denoiser(preset: Preset) -> UNet2DConditionModel:
    """Stable Diffusion's role. Every residual branch starts at zero, which a small model learns from sooner."""
    # Its "attention_head_dim" has always meant the number of heads; the video denoiser's means what it says. And its
    # projections must be linear, because those of the video denoiser are.
    unet = UNet2DConditionModel(**_unet(preset, "2D"), attention_head_dim=_heads(preset), use_linear_projection=True)
    for name, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D):
            _silence(module.conv2)
        elif name.endswith(("proj_out", "conv_out")):
            _silence(module)
    return unet


def make_video_denoiser(preset: Preset, image: UNet2DConditionModel) -> UNet3DConditionModel:
    """ModelScopeT2V's role, inflated: the image denoiser's weights, and layers over time that change nothing yet."""
    unet = UNet3DConditionModel(**_unet(preset, "3D"), attention_head_dim=preset.head)
    missing, unexpected = unet.load_state_dict(image.state_dict(), strict=False)
    over_time = ("transformer_in.", "temp_convs.", "temp_attentions.")
    assert not unexpected and all(any(part in name for part in over_time) for name in missing), (missing, unexpected)
    for name, module in unet.named_modules():
        if name.endswith("proj_out") and any(part in name for part in over_time):
            _silence(module)
    return unet


def make_motion_denoiser(preset: Preset, image: UNet2DConditionModel) -> UNetMotionModel:
    """AnimateDiff's role: motion modules between the layers of the image denoiser, which change nothing yet."""
    adapter = MotionAdapter(
        block_out_channels=preset.unet,
        motion_layers_per_block=preset.unet_layers,
        motion_num_attention_heads=_heads(preset),
        motion_norm_num_groups=preset.groups,
    )
    unet = UNetMotionModel.from_unet2d(image, adapter)
    for name, module in unet.named_modules():
        if name.endswith("proj_out") and "motion_modules" in name:
            _silence(module)
    return unet


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def millions(model: nn.Module) -> float:
    """Parameters, in millions."""
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)
