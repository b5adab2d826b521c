"""The files of the official DreamVideo code (VGen), words and LoRA of other tools: read, written, described. Nothing in
them is ever executed."""

from dreamvideo.official.adapters import read_adapters, write_adapters
from dreamvideo.official.checkpoint import read_tensors
from dreamvideo.official.contents import describe
from dreamvideo.official.lora import read_lora, write_lora, write_motion_lora
from dreamvideo.official.names import MODELSCOPE, Layout, to_diffusers, to_official
from dreamvideo.official.unet import read_unet, unet_config, write_unet
from dreamvideo.official.words import join, read_word, write_textual_inversion, write_word

__all__ = [
    "MODELSCOPE",
    "Layout",
    "describe",
    "join",
    "read_adapters",
    "read_lora",
    "read_tensors",
    "read_unet",
    "read_word",
    "to_diffusers",
    "to_official",
    "unet_config",
    "write_adapters",
    "write_lora",
    "write_motion_lora",
    "write_textual_inversion",
    "write_unet",
    "write_word",
]
