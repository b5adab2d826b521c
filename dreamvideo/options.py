"""Options that commands of several files share, and how what they are given is read."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Base", "Device", "Dtype", "ImageEncoder", "Json", "weighted"]

Base = Annotated[str, typer.Option(help="A base's name, its folder in diffusers' layout, its hub id, or two, A+B.")]
ImageEncoder = Annotated[
    str | None, typer.Option(help="Folder or hub id of a CLIP image encoder, for appearance guidance.")
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Of the frozen weights: fp32, bf16, fp16; auto is fp32 on a CPU, else bf16; int8 and fp8 compute as auto "
        "does and keep most of the denoiser's weights in 8 bits, which approximates them."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps; auto takes the accelerator where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of sentences.")]


def weighted(text: str) -> tuple[str, str | None]:
    """`FILE` or `FILE:WEIGHT`."""
    if Path(text).exists() or ":" not in text:
        return text, None
    file, _, weight = text.rpartition(":")
    return file, weight
