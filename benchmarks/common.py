"""What the benchmarks of speed and memory share: bases of several sizes, random concepts, sides in turns, JSON."""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from dreamvideo import bases, media
from dreamvideo.adapters.layers import LAYERS, Embedding
from dreamvideo.adapters.ports import BasicTransformerBlock, ResnetBlock2D, close_ports
from dreamvideo.bases.base import Defaults, Origin, Parts, VideoBase
from dreamvideo.bases.unet3d import UNet3D
from dreamvideo.concept import Concept, read_concept
from dreamvideo.diffusion import generator
from dreamvideo.files import write_json

OUT = Path(__file__).parents[1] / "docs" / "speed"

# Random bases in the shape of ModelScopeT2V: widths of the denoiser, the autoencoder and the two encoders, and what is
# sampled. `full` is ModelScopeT2V with OpenCLIP ViT-H/14, but for its vocabulary; `mid` is a step or a video in seconds
# on two cores.
_SIZES: dict[str, dict[str, Any]] = {
    "mid": {
        "denoiser": {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 256, "attention_head_dim": 32},
        "vae": (32, 64, 128, 128),
        "text": (256, 4, 6),
        "vision": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "patch_size": 16},
        "projection": 256,
        "defaults": Defaults(frames=8, height=128, width=128, fps=8, steps=10),
    },
    "full": {
        "denoiser": {},
        "vae": (128, 256, 512, 512),
        "text": (1024, 16, 23),
        "vision": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14},
        "projection": 1024,
        "defaults": Defaults(frames=32, height=256, width=256, fps=8, steps=50),
    },
}
BASES = ("tiny", "emojiworld", *_SIZES)


def load(name: str, device: str, *, half: bool = False, empty: bool = False, frames: int | None = None) -> VideoBase:
    """A base of `BASES`, in half precision on a GPU, as users get it, or where `half` asks for it; of a random one,
    `empty` has no values and takes no memory: enough to estimate with. `frames` instead of its own number."""
    if name in _SIZES:
        base = _random(name, device, half=half or device != "cpu", empty=empty)
    else:
        base = bases.load(name, device=device)
    if frames is not None:
        base.defaults = replace(base.defaults, frames=frames)
    return base


def _random(name: str, device: str, *, half: bool, empty: bool) -> VideoBase:
    size, tiny, usual = _SIZES[name], bases.load("tiny").parts, torch.get_default_dtype()
    with torch.device("meta" if empty else device), torch.random.fork_rng():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16 if half else usual)
        try:
            parts = _random_parts(size, tiny)
        finally:
            torch.set_default_dtype(usual)
    if empty:
        for part in parts.modules:
            part.to_empty(device=device)
    return UNet3D(Origin(name=name, reference=name), parts=parts, defaults=size["defaults"])


def _random_parts(size: Mapping[str, Any], tiny: Parts) -> Parts:
    """With the scheduler and the tokenizer of the tiny base."""
    width, heads, depth = size["text"]
    text = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    vision = CLIPVisionConfig(
        **size["vision"], intermediate_size=4 * size["vision"]["hidden_size"], projection_dim=size["projection"]
    )
    coders = [f"{way}{kind}" for way, kind in (("Down", "EncoderBlock2D"), ("Up", "DecoderBlock2D"))]
    return replace(
        tiny,
        denoiser=UNet3DConditionModel(sample_size=size["defaults"].height // 8, **size["denoiser"]),
        vae=AutoencoderKL(
            down_block_types=coders[:1] * 4,
            up_block_types=coders[1:] * 4,
            block_out_channels=size["vae"],
            layers_per_block=2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(text),
        image_encoder=CLIPVisionModelWithProjection(vision),
    )


def weights(base: VideoBase) -> dict[int, nn.Parameter]:
    """The base's own, by id, with the denoiser's in float32: what sides beside it may share."""
    every = {id(value): value for module in base.parts.modules for value in module.parameters()}
    denoiser = {id(value): value for value in base.parts.denoiser.parameters() if value.dtype != torch.float32}
    return every | {number: nn.Parameter(value.float(), requires_grad=False) for number, value in denoiser.items()}


def stock(base: VideoBase, weights: Mapping[int, nn.Parameter] | None = None) -> Parts:
    """A copy of the base's parts in the stock classes of diffusers and transformers, with these weights or its own."""
    parts = copy.deepcopy(base.parts, dict(weights or {}))
    close_ports(parts.denoiser, (BasicTransformerBlock, ResnetBlock2D, *LAYERS, *base.time_modules))
    close_ports(parts.text_encoder, (Embedding,))
    return parts


def concepts(folder: Path, base: VideoBase, *, pictures: int = 4) -> dict[str, Concept]:
    """Random pictures and a random clip of the base's size, as a subject and a motion."""
    sizes = base.defaults
    shape = (max(sizes.frames, pictures), sizes.height, sizes.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for number in range(pictures):
        media.write_video(folder / "thing" / f"{number}.png", pixels[number : number + 1], fps=1)
    media.write_video(folder / "turn.mp4", pixels[: sizes.frames], fps=sizes.fps)
    return {
        "dreamvideo-subject": read_concept(folder / "thing", kind="image", word="*"),
        "dreamvideo-motion": read_concept(folder / "turn.mp4", kind="clip", caption="a car turning"),
    }


def clock(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def turns(sides: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int) -> dict[str, float]:
    """Median seconds of every side. They run in turns, so that a busy machine is so for all; a first round is left
    out."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            begun = clock(device)
            side()
            seconds[name].append(clock(device) - begun)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds counted as two, a second, of one large matrix product: what the device can do at best."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / turns({"product": lambda: a @ b}, device, rounds=7)["product"]


def noise(base: VideoBase, *, frames: int | None = None, side: int | None = None) -> Tensor:
    """(1, C, F, h, w) on the base's device."""
    sizes = base.defaults
    shape = base.latent_shape(frames or sizes.frames, side or sizes.height, side or sizes.width)
    return torch.randn((1, *shape), generator=generator("benchmark")).to(base.device)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def options(doc: str, *, bases: tuple[str, ...]) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, nargs="+", default=list(bases))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON")
    return parser


def write(out: Path, name: str, results: Mapping[str, Any], device: str) -> Path:
    """Results beside the versions and the hardware they were made with, and printed. Those of other bases that lie
    there stay, if they were made with the same."""
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    facts = {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("dreamvideo", "torch", "diffusers", "transformers")},
    }
    print(json.dumps(results, indent=2))
    path = out / f"{name}-{'cpu' if device == 'cpu' else 'gpu'}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = known.pop("results", {})
    write_json(path, {**facts, "results": {**(before if known == facts else {}), **results}})
    return path


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
