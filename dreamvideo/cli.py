"""The command line: each command is a few lines over the Python face.

torch is imported inside the commands that need it, so that --help and the lists answer at once.
"""

import logging
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamvideo import catalogue, measuring
from dreamvideo.analysis.cli import app as analysis
from dreamvideo.bench.cli import app as bench
from dreamvideo.bundled import DEFAULT_BASE
from dreamvideo.config import parse_setting
from dreamvideo.errors import BadInput, DreamVideoError
from dreamvideo.options import Base, Device, Dtype, ImageEncoder, Json, weighted
from dreamvideo.terminal import bar, leads, outline, say, table

__all__ = ["app", "main"]

app = typer.Typer(
    name="dreamvideo",
    help="Learn a subject from pictures, a motion from clips, and make videos of any subject in any motion.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(measuring.app)
app.add_typer(analysis)
app.add_typer(bench, name="bench")


class Sampler(StrEnum):
    """How the noise is removed."""

    ddim = "ddim"
    dpm = "dpm++"
    unipc = "unipc"


class Placement(StrEnum):
    """Of an adapter, beside its branch or after it."""

    parallel = "parallel"
    serial = "serial"


class Format(StrEnum):
    """What `convert` writes."""

    dreamvideo = "dreamvideo"
    official = "official"
    diffusers = "diffusers"


RecipeName = Annotated[str | None, typer.Option(help="A shipped recipe's name (paper, official) or a .toml file.")]
Set = Annotated[list[str], typer.Option("--set", help="Any setting of the recipe: section.field=value. Repeatable.")]
Preset = Annotated[
    str | None, typer.Option(help="Fit into a card's memory: 8gb, 12gb, 16gb, 24gb, or auto for what is there.")
]
LearnSteps = Annotated[int | None, typer.Option(min=1, help="Updates of every stage, instead of the recipe's.")]
Name = Annotated[str | None, typer.Option(help="Name of the concept; default the folder's.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME.")]
Restart = Annotated[bool, typer.Option("--restart", help="Forget what an earlier run did and begin anew.")]


@app.command()
def subject(
    source: Annotated[
        Path, typer.Argument(help="A folder of three to five pictures; masks/ beside them if you have some.")
    ],
    word: Annotated[str | None, typer.Option(help="What it is, in a word that the base knows: dog.")] = None,
    method: Annotated[str, typer.Option(help="See `dreamvideo methods`.")] = "dreamvideo-subject",
    name: Name = None,
    out: Out = None,
    base: Base = DEFAULT_BASE,
    image_encoder: ImageEncoder = None,
    recipe: RecipeName = None,
    set: Set = [],  # noqa: B006 - typer reads the option's name and default here
    steps: LearnSteps = None,
    preset: Preset = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Learn a subject from pictures."""
    method = catalogue.half(method, "subject")
    options = {"method": method, "name": name, "word": word, "out": out, "recipe": recipe, "restart": restart}
    _learn(source, {**options, "preset": preset}, (base, dtype, device, image_encoder), set, steps, as_json=json)


@app.command()
def motion(
    source: Annotated[Path, typer.Argument(help="A clip, or a folder of clips that show the same motion.")],
    caption: Annotated[str | None, typer.Option(help='What happens in them: "a car turning on the road".')] = None,
    method: Annotated[str, typer.Option(help="See `dreamvideo methods`.")] = "dreamvideo-motion",
    name: Name = None,
    out: Out = None,
    base: Base = DEFAULT_BASE,
    image_encoder: ImageEncoder = None,
    recipe: RecipeName = None,
    set: Set = [],  # noqa: B006
    steps: LearnSteps = None,
    preset: Preset = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Learn a motion from one or a few clips."""
    method = catalogue.half(method, "motion")
    options = {"method": method, "name": name, "caption": caption, "out": out, "recipe": recipe, "restart": restart}
    _learn(source, {**options, "preset": preset}, (base, dtype, device, image_encoder), set, steps, as_json=json)


def _learn(
    source: Path,
    options: dict[str, Any],
    base: tuple[str, str, str, str | None],
    settings: list[str],
    steps: int | None,
    *,
    as_json: bool,
) -> None:
    from dreamvideo import api

    layers = [parse_setting(text) for text in settings]
    if steps is not None:
        layers.append({"train": {"steps": steps}})
    with bar() as advance:
        learned = api.learn(
            _base(*base),
            source,
            **options,
            settings=layers,
            on_step=lambda p: advance(p.stage, p.step, p.steps, p.note),
        )
    meta = learned.meta
    say(
        {"file": str(learned.path), "name": meta.name, "method": meta.method, "steps": dict(meta.steps)},
        f"{learned.path}: {meta.role} {meta.name}, learned with {meta.method} on {meta.base}",
        as_json=as_json,
    )


@app.command()
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="<name> is the learned word of the subject of that name.")
    ] = None,
    subject: Annotated[list[str], typer.Option(help="FILE or FILE:WEIGHT. Repeatable.")] = [],  # noqa: B006
    motion: Annotated[list[str], typer.Option(help="FILE or FILE:WEIGHT. Repeatable.")] = [],  # noqa: B006
    appearance: Annotated[Path | None, typer.Option(help="A picture of what moves, for appearance guidance.")] = None,
    appearance_strength: Annotated[
        tuple[float, float] | None, typer.Option(help="Of the conditional and the unconditional branch.")
    ] = None,
    inversion: Annotated[
        Path | None, typer.Option(help="A clip whose inverted noise is blended into the start.")
    ] = None,
    inversion_strength: Annotated[
        float | None,
        typer.Option(help="Share of the inverted noise, 0 to 1; default as the motion was learned, or 0.5."),
    ] = None,
    noise_offset: Annotated[float | None, typer.Option(help="Default: as the concepts were learned.")] = None,
    negative: Annotated[str, typer.Option(help="Prompt of the unconditional branch.")] = "",
    out: Annotated[Path, typer.Option(help="mp4, gif, webp, png; without a suffix a folder of png.")] = Path(
        "video.mp4"
    ),
    count: Annotated[int, typer.Option(min=1, help="Videos, with seeds from --seed on.")] = 1,
    seed: int = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    sampler: Sampler = Sampler.ddim,
    reuse: Annotated[
        int, typer.Option(help="Compute the deep levels at every n-th step only: faster, not the same video.")
    ] = 1,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: int | None = None,
    preset: Preset = None,
    base: Base = DEFAULT_BASE,
    image_encoder: ImageEncoder = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    from_: Annotated[Path | None, typer.Option("--from", help="Make again what a video's JSON describes.")] = None,
    json: Json = False,
) -> None:
    """Make videos from a prompt, with any subjects and any motions."""
    from dreamvideo import api, sample

    if (prompt is None) == (from_ is None):
        raise BadInput("give either a prompt or --from VIDEO.mp4.json")
    if from_ is not None:
        saved = [str(api.regenerate(from_, device=device, preset=preset).save(out))]
    else:
        config = sample.SampleConfig(
            frames=frames, height=height, width=width, fps=fps, steps=steps, guidance=guidance, sampler=sampler.value,
            negative=negative, reuse=reuse,
        )  # fmt: skip
        loaded = _base(base, dtype, device, image_encoder)
        parts = [weighted(text) for text in (*subject, *motion)]
        saved = []
        for number in range(count):
            with bar() as advance:
                video = api.generate(
                    loaded,
                    prompt,
                    concepts=[file for file, _ in parts],
                    weights=[weight for _, weight in parts],
                    appearance=appearance,
                    appearance_strength=appearance_strength,
                    inversion=inversion,
                    inversion_strength=inversion_strength,
                    noise_offset=noise_offset,
                    seed=seed + number,
                    config=config,
                    preset=preset,
                    on_step=lambda done, steps, at=seed + number: advance(f"seed {at}", done, steps, ""),
                )
            place = out if number == 0 else out.with_stem(f"{out.stem}-{number + 1}")
            saved.append(str(video.save(place)))
    say({"videos": saved}, "\n".join(saved), as_json=json)


@app.command()
def edit(
    clip: Annotated[Path, typer.Argument(help="A clip; masks of its foreground in masks/NAME/ beside it, if any.")],
    prompt: Annotated[str, typer.Argument(help="What it is to show.")],
    caption: Annotated[str | None, typer.Option(help="What it shows; default what NAME.txt beside it says.")] = None,
    method: Annotated[str, typer.Option(help="See `dreamvideo edits`.")] = "text2live",
    out: Annotated[Path, typer.Option(help="mp4, gif, webp; without a suffix a folder of png.")] = Path("edit.mp4"),
    keep: Annotated[
        Path | None, typer.Option(help="A folder for what depends on the clip alone, for its next edit.")
    ] = None,
    seed: int = 0,
    base: Base = DEFAULT_BASE,
    recipe: RecipeName = None,
    set: Set = [],  # noqa: B006
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Make another video of a clip, as a prompt says."""
    from dreamvideo import api

    settings = [parse_setting(text) for text in set]
    loaded = _base(base, dtype, device, None)
    with bar() as advance:
        video = api.edit(
            loaded, clip, prompt, caption=caption, method=method, recipe=recipe, settings=settings, keep=keep,
            seed=seed, on_step=lambda p: advance(p.stage, p.step, p.steps, p.note),
        )  # fmt: skip
    saved = str(video.save(out))
    say({"video": saved, "measured": video.made["measured"]}, saved, as_json=json)


@app.command()
def bases(json: Json = False) -> None:
    """The bases that can be named, and what they need."""
    entries = catalogue.bases()
    lines = [(e.name, e.family, e.licence or "", e.summary) for e in entries]
    say([asdict(e) for e in entries], table(lines), as_json=json)


@app.command()
def methods(json: Json = False) -> None:
    """The methods, what they learn from, and their recipes."""
    entries = catalogue.methods()
    lines = [(e.name, e.learns + "s", " ".join(e.recipes), e.summary) for e in entries]
    say([asdict(e) for e in entries], table(lines), as_json=json)


@app.command()
def edits(json: Json = False) -> None:
    """The methods that edit a clip, and their recipes."""
    entries = catalogue.edits()
    lines = [(e.name, " ".join(e.recipes), e.summary) for e in entries]
    say([asdict(e) for e in entries], table(lines), as_json=json)


@app.command()
def convert(
    sources: Annotated[list[Path], typer.Argument(help="Files of the official code, of diffusers, or ours.")],
    out: Annotated[Path, typer.Option(help="The file or folder to write.")],
    to: Annotated[Format, typer.Option(help="What to write.")] = Format.dreamvideo,
    name: Name = None,
    word: Annotated[str | None, typer.Option(help="The class word of a subject.")] = None,
    caption: Annotated[str | None, typer.Option(help="What happens in a motion's clips.")] = None,
    placement: Annotated[Placement, typer.Option(help="Of adapters in official files.")] = Placement.parallel,
    layers: Annotated[int, typer.Option(help="Residual blocks a level, of the base of official adapters.")] = 2,
    appearance_strength: Annotated[
        tuple[float, float], typer.Option(help="Of an official motion; 1 1 if it was learned from one clip.")
    ] = (1.0, 0.0),
    family: Annotated[str | None, typer.Option(help="Of the base of a LoRA file, as `bases` lists it.")] = None,
    json: Json = False,
) -> None:
    """Read and write the files of the official code, and words and LoRA of other tools."""
    from dreamvideo import convert

    facts = convert.Facts(
        name=name, word=word, caption=caption, placement=placement.value, layers=layers,
        appearance_strength=appearance_strength, family=family,
    )  # fmt: skip
    written = [str(path) for path in convert.convert(sources, out, to=to.value, facts=facts)]
    say({"files": written}, "\n".join(written), as_json=json)


@app.command()
def inspect(
    thing: Annotated[Path, typer.Argument(help="A concept's folder, a clip, a file of weights, a base's folder.")],
    frames: Annotated[int, typer.Option(help="Frames that a clip would be sampled to.")] = 32,
    fps: Annotated[int, typer.Option(help="Rate that a clip would be sampled at.")] = 8,
    json: Json = False,
) -> None:
    """Show what a folder or a file holds, and what would be used of it."""
    from dreamvideo.describe import describe

    if thing.suffix.lower() in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"):
        from dreamvideo import official

        found = official.describe(thing)
    else:
        found = describe(thing, frames=frames, fps=fps)
    say(found, "\n".join(outline(found)), as_json=json)
    if found.get("problems"):
        sys.exit(BadInput.exit_code)


@app.command()
def doctor(json: Json = False) -> None:
    """What this machine can run, what is missing, and how to get it."""
    from dreamvideo.doctor import examine

    findings = examine()
    lines = [("ok" if f.fine else "no", f.what, f.found, "" if f.fine else f.remedy) for f in findings]
    say([asdict(finding) for finding in findings], table(lines), as_json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder for videos and index.html.")] = Path("demo"),
    base: Base = DEFAULT_BASE,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of each stage; else the recipes'.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """The whole story on example inputs: a subject, a motion, both together, on a page."""
    from dreamvideo.demo import demo

    page = demo(_base(base, dtype, device, None), out, steps=steps, on_stage=lambda line: typer.echo(line, err=True))
    typer.echo(page)


def _base(reference: str, dtype: str, device: str, image_encoder: str | None) -> Any:
    from dreamvideo import api

    if reference.startswith("tiny") and leads():
        typer.echo(f"base {reference} has random weights: it shows that everything runs, and makes noise", err=True)
    return api.load_base(reference, dtype=dtype, device=device, image_encoder=image_encoder)


def main() -> None:
    """Run a command; an explained failure is one line and its exit code."""
    try:
        if leads():
            app()
        else:
            _quietly()
    except DreamVideoError as error:
        typer.echo(f"dreamvideo: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _quietly() -> None:
    """Run a command of which another process tells; what fails here is still said."""
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            app()
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    main()
