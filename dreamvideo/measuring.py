"""The commands that measure."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dreamvideo import catalogue
from dreamvideo.options import Device, Json
from dreamvideo.terminal import say, table

__all__ = ["app"]

app = typer.Typer()

Siblings = Annotated[list[Path], typer.Option(help="A video of the same prompt and another seed. Repeatable.")]


@app.command()
def score(
    video: Annotated[Path, typer.Argument(help="Any video from any tool, or a folder of its frames.")],
    prompt: Annotated[str | None, typer.Option(help="In plain words: the class word for a learned one.")] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of pictures of the subject.")] = None,
    reference_clip: Annotated[Path | None, typer.Option(help="A clip of the motion, or a folder of clips.")] = None,
    sibling: Siblings = [],  # noqa: B006 - typer reads the option's name and default here
    base: Annotated[str | None, typer.Option(help="Measure with the encoders of this base: emojiworld.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP, folder or hub id: openai/clip-vit-base-patch32.")] = None,
    dino: Annotated[str | None, typer.Option(help="DINO, folder or hub id: facebook/dino-vits16.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="Folder with the weights of LPIPS and of its AlexNet.")] = None,
    raft: Annotated[Path | None, typer.Option(help="File of RAFT's weights; needs torchvision.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure a video by all that applies to it; `dreamvideo metrics` says what each metric needs."""
    from dreamvideo import scoring

    scores = scoring.score(
        video, prompt=prompt, references=references, reference_clip=reference_clip, siblings=sibling, base=base,
        clip=clip, dino=dino, lpips=lpips, raft=raft, device=device,
    )  # fmt: skip
    lines = [(one.name, f"{one.value:.4f}", _better(one.higher_is_better)) for one in scores]
    say({"video": str(video), "scores": [asdict(one) for one in scores]}, table(lines), as_json=json)


@app.command()
def metrics(json: Json = False) -> None:
    """The metrics, and what each needs beside the video."""
    entries = catalogue.metrics()
    lines = [(e.name, _better(e.higher_is_better), f"needs {e.needs}", e.summary) for e in entries]
    say([asdict(e) for e in entries], table(lines), as_json=json)


def _better(higher: bool) -> str:
    return "higher is better" if higher else "lower is better"
