"""`dreamvideo grid` and `dreamvideo analyze`. Each command is a few lines; torch is imported where it is needed."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dreamvideo.bundled import DEFAULT_BASE
from dreamvideo.options import Base, Device, Dtype, ImageEncoder, Json, weighted
from dreamvideo.terminal import bar, say, table

__all__ = ["app"]

app = typer.Typer()
analyze = typer.Typer(help="Look into what was learned.", no_args_is_help=True)
app.add_typer(analyze, name="analyze")

Run = Annotated[Path | None, typer.Option(help="A run's folder with its checkpoints, or a concept's file.")]
Steps = Annotated[list[int], typer.Option(help="A checkpoint's step; all that were kept if none is given. Repeatable.")]
Weights = Annotated[list[str], typer.Option(help="As in generate; the concept's own if none is given. Repeatable.")]
Concepts = Annotated[list[str], typer.Option(help="FILE or FILE:WEIGHT. Repeatable.")]


@app.command()
def grid(
    prompt: Annotated[str, typer.Argument(help="<name> is the learned word of the subject of that name.")],
    subject: Run = None,
    subject_step: Steps = [],  # noqa: B006 - typer reads the option's name and default here
    subject_weight: Weights = [],  # noqa: B006
    motion: Run = None,
    motion_step: Steps = [],  # noqa: B006
    motion_weight: Weights = [],  # noqa: B006
    references: Annotated[
        Path | None, typer.Option(help="Folder of pictures of the subject; the first guides motions.")
    ] = None,
    reference_clip: Annotated[Path | None, typer.Option(help="A clip of the motion, or a folder of clips.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the sheet, the tables and the videos.")] = Path("grid"),
    seed: int = 0,
    count: Annotated[int, typer.Option(min=1, help="Videos a cell, with seeds from --seed on.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP, folder or hub id, where the base's card names none.")] = None,
    dino: Annotated[str | None, typer.Option(help="DINO, folder or hub id, likewise.")] = None,
    base: Base = DEFAULT_BASE,
    image_encoder: ImageEncoder = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Try every checkpoint and weight of a subject and a motion together, and name the best by a rule."""
    from dreamvideo import api, metrics
    from dreamvideo.analysis import grid as grids
    from dreamvideo.sample import SampleConfig

    subjects = [] if subject is None else grids.versions(subject, steps=subject_step, weights=subject_weight)
    motions = [] if motion is None else grids.versions(motion, steps=motion_step, weights=motion_weight)
    loaded = api.load_base(base, dtype=dtype, device=device, image_encoder=image_encoder)
    asked = grids.Asked(
        prompt=prompt, seeds=range(seed, seed + count), config=SampleConfig(steps=steps), references=references,
        reference_clip=reference_clip,
    )  # fmt: skip
    measures = metrics.for_base(loaded, clip=clip, dino=dino, device=str(loaded.device))
    with bar() as advance:
        cells = grids.make(
            loaded, asked, subjects, motions, measures=measures, folder=out / "videos",
            on_video=lambda done, total: advance("videos", done, total, ""),
        )  # fmt: skip
    files, best = grids.write(out, asked, cells)
    chosen = [version.label for version in (cells[best].subject, cells[best].motion) if version is not None]
    say(
        {"files": [str(file) for file in files], "best": best, "versions": chosen},
        "\n".join([*map(str, files), f"best of {len(cells)}: {' with '.join(chosen)}", f"({grids.RULE})"]),
        as_json=json,
    )


@analyze.command()
def weights(
    concepts: Annotated[list[Path], typer.Argument(help="Concept files: of a subject and of a motion, say.")],
    out: Annotated[Path, typer.Option(help="Folder for weights.png and weights.csv.")] = Path("analysis"),
    base: Base = DEFAULT_BASE,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """How much learning changed which layers (DreamVideo, Fig. 4)."""
    from dreamvideo import api
    from dreamvideo.adapters.file import load
    from dreamvideo.analysis import weights as changes

    learned = [load(concept) for concept in concepts]
    files, shown = changes.write(out, api.load_base(base, dtype=dtype, device=device), learned)
    lines = [
        (title, category, f"{mean.rate:.3g}", f"{mean.tensors} tensors")
        for title, own in shown.items()
        for category, mean in own.items()
    ]
    say(
        {
            "files": [str(file) for file in files],
            "means": {
                title: {category: asdict(mean) for category, mean in own.items()} for title, own in shown.items()
            },
        },
        "\n".join([table(lines), *map(str, files)]),
        as_json=json,
    )


@analyze.command()
def attention(
    prompt: Annotated[str, typer.Argument(help="<name> is the learned word of the subject of that name.")],
    word: Annotated[str, typer.Option(help="A learned <name>, or any words of the prompt.")],
    subject: Concepts = [],  # noqa: B006
    motion: Concepts = [],  # noqa: B006
    appearance: Annotated[Path | None, typer.Option(help="A picture of what moves, for appearance guidance.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the sheet, the values and the video.")] = Path("analysis"),
    seed: int = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    base: Base = DEFAULT_BASE,
    image_encoder: ImageEncoder = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Where a word of the prompt acts, over frames and denoising time."""
    from dreamvideo import api
    from dreamvideo.adapters.file import load
    from dreamvideo.analysis import attention as maps
    from dreamvideo.sample import SampleConfig

    loaded = api.load_base(base, dtype=dtype, device=device, image_encoder=image_encoder)
    given = [weighted(text) for text in (*subject, *motion)]
    concepts, config = [load(file) for file, _ in given], SampleConfig(steps=steps).filled(loaded.defaults)
    _, *shape = loaded.latent_shape(config.frames, config.height, config.width)
    tokens = maps.places(loaded, prompt, word, concepts)
    reader = maps.Reader(tokens, length=loaded.parts.tokenizer.model_max_length, shape=tuple(shape))
    with bar() as advance:
        video = api.generate(
            loaded, prompt, concepts=concepts, weights=[weight for _, weight in given], appearance=appearance,
            seed=seed, config=config, controller=reader, on_step=lambda done, total: advance("steps", done, total, ""),
        )  # fmt: skip
    saved = [*maps.write(out, video, reader.maps, word=word), video.save(out / "attention.mp4")]
    say({"files": [str(file) for file in saved]}, "\n".join(map(str, saved)), as_json=json)
