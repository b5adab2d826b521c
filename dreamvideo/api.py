"""The verbs that every edge calls: load a base, learn a concept, generate a video, edit a clip."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamvideo import bases, editing, media, memory, methods, processes, sample, thrift, train
from dreamvideo.adapters.file import ConceptFile, load
from dreamvideo.adapters.weight import Weight
from dreamvideo.bases.base import VideoBase
from dreamvideo.bundled import DEFAULT_BASE
from dreamvideo.concept import Concept, read_concept
from dreamvideo.config import build, plain
from dreamvideo.data import ClassImages, to_pixels
from dreamvideo.edits.edit import Task
from dreamvideo.errors import BadFile, BadInput
from dreamvideo.progress import Progress
from dreamvideo.recipe import resolve
from dreamvideo.sample import Appearance, Composition, Controller, Inversion, SampleConfig, Thrift
from dreamvideo.video import Video, described_file, read_made
from dreamvideo.wording import worded

__all__ = ["Video", "edit", "exemplified", "generate", "learn", "load_base", "regenerate"]

_log = logging.getLogger(__name__)


def load_base(
    reference: str = DEFAULT_BASE, *, dtype: str = "auto", device: str = "auto", image_encoder: str | None = None
) -> VideoBase:
    """A base by name, folder or hub id; `device` auto takes the accelerator where there is one.

    Raises:
        BadInput, MissingWeights: see `dreamvideo.bases.load`.
    """
    return bases.load(reference, dtype=dtype, device=processes.device(device), image_encoder=image_encoder)


def learn(
    base: VideoBase,
    source: str | Path,
    *,
    method: str,
    name: str | None = None,
    word: str | None = None,
    caption: str | None = None,
    out: str | Path | None = None,
    recipe: str | None = None,
    settings: Iterable[Mapping[str, Any]] = (),
    preset: str | None = None,
    restart: bool = False,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> ConceptFile:
    """Learn a concept from a folder or file, into the run folder `out` (default `runs/NAME`).

    The same call again goes on where an earlier one stopped, or returns what it made.

    Args:
        name: of the concept; default the folder's.
        word: the class word of a subject.
        caption: what happens in the clips of a motion.
        recipe: name of a shipped recipe, or a TOML file.
        settings: nested dicts over the recipe, such as `{"train": {"batch": 2}}`.
        preset: how to fit into memory, one of `dreamvideo.memory.PRESETS` or `auto`; `settings` lie over it.

    Raises:
        BadInput: the source, the recipe or the base will not do.
        RunFailed, Interrupted: see `dreamvideo.train.fit`.
    """
    kind = methods.find(method).learns
    concept = read_concept(source, kind=kind, name=name, word=word, caption=caption)
    for line in _remarks(concept):
        _log.warning(line)
    make = partial(resolve, method, base, concept, recipe=recipe)
    resolved = memory.chosen(preset, make, base, concept, settings=settings)

    def preview(learned: ConceptFile, path: Path) -> None:
        prompt = resolved.method.prompt(concept, concept.examples[0])
        wishes = learned.meta.sampling
        composition = Composition(noise_offset=wishes.noise_offset, reach=wishes.reach)
        made = _sampled(base, prompt, composition, SampleConfig(), 0, Thrift())
        media.write_video(path, made, fps=base.defaults.fps)

    def class_image(images: ClassImages, number: int) -> torch.Tensor:
        if number == 0:
            _log.warning("before learning begins, the plain base makes class images of %r", images.prompt)
        size = SampleConfig(frames=1, height=resolved.data.height, width=resolved.data.width)
        return sample.generate(base, images.prompt, Composition(bypass_time=images.bypass_time), size, seed=number)

    folder = Path("runs", concept.name) if out is None else Path(out)
    return train.fit(
        resolved, base, concept, folder, restart=restart, on_step=on_step, on_preview=preview, sampler=class_image
    )


def generate(
    base: VideoBase,
    prompt: str,
    *,
    concepts: Sequence[ConceptFile | str | Path] = (),
    weights: Sequence[Weight | float | str | None] = (),
    appearance: str | Path | None = None,
    appearance_strength: tuple[float, float] | None = None,
    inversion: str | Path | None = None,
    inversion_strength: float | None = None,
    noise_offset: float | None = None,
    seed: int = 0,
    config: SampleConfig | None = None,
    preset: str | None = None,
    controller: Controller | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Video:
    """Sample one video.

    Args:
        prompt: `<name>` is the learned word of the subject of that name; `*` stands for it where there is exactly one.
        concepts: learned concepts or their files, any number of subjects and motions.
        weights: one for each concept, None for its own; see `Weight.parse`.
        appearance: a picture of what should move, for motions with appearance guidance. Without it they get the zero
            vector, as in training where it was dropped.
        appearance_strength: of the conditional and unconditional branch; default as the motions were learned.
        inversion: a clip whose inverted noise is blended into the start.
        inversion_strength: its share; default as the motions were learned, or else 0.5.
        noise_offset: strength of offset noise; default as the concepts were learned.
        preset: how to fit into memory, one of `dreamvideo.thrift.PRESETS` or `auto`; the video is the same to rounding.
        controller: looks at attention while the video is made, or acts on it; `regenerate` knows nothing of it.

    Raises:
        BadInput: a file, a prompt or a setting will not do, or the video will not fit into memory.
    """
    config = (config or SampleConfig()).filled(base.defaults)
    weighted = _weighted(concepts, weights)
    files = [file for file, _ in weighted]
    sample.check_base(base, files)
    saving = thrift.chosen(preset, base, config, [adapters for file in files for adapters in file.sets.values()])
    inversion_strength = _inversion_strength(files, inversion, inversion_strength)
    composition = Composition(
        concepts=weighted,
        appearance=_appearance(base, files, appearance, appearance_strength),
        noise_offset=_noise_offset(files) if noise_offset is None else noise_offset,
        inversion=None if inversion is None else _inversion(base, inversion, inversion_strength, config),
    )
    frames = _sampled(base, worded(prompt, files), composition, config, seed, saving, controller, on_step)
    made = {
        **_made_by(base),
        "prompt": prompt,
        "concepts": [_described(file, weight) for file, weight in weighted],
        "appearance": appearance and described_file(appearance),
        "appearance_strength": composition.appearance and list(composition.appearance.strength),
        "inversion": inversion and {**described_file(inversion), "strength": inversion_strength},
        "noise_offset": composition.noise_offset,
        "seed": seed,
        "config": plain(config),
    }
    return Video(frames, config.fps, made)


def edit(
    base: VideoBase,
    clip: str | Path,
    prompt: str,
    *,
    caption: str | None = None,
    method: str = "text2live",
    recipe: str | None = None,
    settings: Iterable[Mapping[str, Any]] = (),
    keep: str | Path | None = None,
    seed: int = 0,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Video:
    """Make of a clip what `prompt` says.

    Args:
        clip: a file; masks of its foreground may lie beside it, `masks/NAME/*.png`, one for each frame.
        caption: what it shows; default what is written beside it.
        method: one of `dreamvideo edits`.
        recipe: name of a shipped recipe, or a TOML file.
        settings: nested dicts over the recipe, such as `{"edit": {"steps": 100}}`.
        keep: a folder for what depends on the clip alone: for its next edit, or for the same one after a stop.

    Raises:
        BadInput: the clip, the recipe or the base will not do.
        RunFailed, Interrupted: see `dreamvideo.editing.perform`.
    """
    resolved = editing.resolve(method, base, recipe=recipe, settings=settings)
    source = editing.read(clip, resolved.clip, caption=caption)
    task = Task(
        frames=source.frames,
        masks=source.masks,
        caption=source.caption,
        prompt=prompt,
        keep=None if keep is None else Path(keep),
    )
    edited = editing.perform(resolved.edit, base, task, seed=seed, on_step=on_step)
    made = {
        **_made_by(base),
        "edit": {"name": method, **plain(resolved.edit)},
        "clip": described_file(source.path),
        "masks": [described_file(mask) for mask in source.mask_files],
        "sizes": plain(resolved.clip),
        "caption": source.caption,
        "prompt": prompt,
        "seed": seed,
        "measured": dict(edited.measured),
    }
    return Video(_bytes(edited.frames), source.fps, made)


def regenerate(path: str | Path, *, device: str = "auto", preset: str | None = None) -> Video:
    """Make again the video that a JSON written by `Video.save` describes: the same frames.

    Args:
        preset: see `generate`; an edit has none.

    Raises:
        BadFile: not such a JSON, or a file that it names is gone or has changed.
    """
    made = read_made(path)
    try:
        origin = made["base"]
        again = (
            partial(edit, **_edit_again(made))
            if "edit" in made
            else partial(generate, preset=preset, **_generate_again(made))
        )
        encoder = origin["image_encoder"]
        load = partial(load_base, origin["reference"], dtype=origin["dtype"], device=device, image_encoder=encoder)
    except (KeyError, TypeError) as error:
        raise BadFile(f"{path}: not a JSON that was written beside a video") from error
    return again(load())


def exemplified(
    concepts: Sequence[ConceptFile], *, pictures: Sequence[Path] = (), clips: Sequence[Path] = ()
) -> dict[str, Path]:
    """What concepts ask `generate` for, of examples at hand: as `appearance` the first picture for a motion that was
    learned with appearance guidance, as `inversion` the first clip for one that starts from its clip's noise."""
    guided = any(concept.condition is not None for concept in concepts)
    inverted = any(concept.meta.sampling.inversion for concept in concepts)
    wanted = {"appearance": pictures if guided else (), "inversion": clips if inverted else ()}
    return {name: examples[0] for name, examples in wanted.items() if examples}


def _generate_again(made: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` that made a video."""
    return {
        "prompt": made["prompt"],
        "concepts": [concept["path"] for concept in made["concepts"]],
        "weights": [concept["weight"] for concept in made["concepts"]],
        "appearance": made["appearance"] and made["appearance"]["path"],
        "appearance_strength": made["appearance_strength"],
        "inversion": made["inversion"] and made["inversion"]["path"],
        "inversion_strength": made["inversion"]["strength"] if made["inversion"] else 0.0,
        "noise_offset": made["noise_offset"],
        "seed": made["seed"],
        "config": build(SampleConfig, made["config"], where="config"),
    }


def _edit_again(made: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `edit` that made a video."""
    settings = dict(made["edit"])
    return {
        "clip": made["clip"]["path"],
        "prompt": made["prompt"],
        "caption": made["caption"],
        "method": settings.pop("name"),
        "settings": [{"edit": settings, "clip": made["sizes"]}],
        "seed": made["seed"],
    }


def _remarks(concept: Concept) -> list[str]:
    """What is worth knowing before anything is learned: what is left out, and what is odd about the rest."""
    files: dict[str, list[str]] = {}
    for example in concept.examples:
        for note in example.notes:
            files.setdefault(note, []).append(example.path.name)
    left_out = [f"{left.path.name} is left out: {left.why}" for left in concept.left_out]
    return [*left_out, *(f"{note} ({', '.join(names)})" for note, names in files.items())]


def _sampled(
    base: VideoBase,
    prompt: str,
    composition: Composition,
    config: SampleConfig,
    seed: int,
    saving: Thrift,
    controller: Controller | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> np.ndarray:
    """Frames, uint8 (F, H, W, 3)."""
    latents = sample.generate(
        base, prompt, composition, config, seed=seed, controller=controller, thrift=saving, on_step=on_step
    )
    return _bytes((base.decode(latents)[0].transpose(0, 1) + 1) / 2)


def _bytes(frames: torch.Tensor) -> np.ndarray:
    """(F, 3, H, W) in [0, 1] -> uint8 (F, H, W, 3)."""
    return (frames.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().cpu().numpy()


def _made_by(base: VideoBase) -> dict[str, Any]:
    """The first lines of a video's JSON."""
    origin = base.origin
    return {
        "created_by": f"dreamvideo {version('dreamvideo')}",
        "base": {"reference": origin.reference, "image_encoder": origin.image_encoder, "dtype": base.precision},
    }


def _described(file: ConceptFile, weight: Weight) -> dict[str, Any]:
    """A concept in a video's JSON."""
    return {**described_file(file.path), "name": file.meta.name, "weight": str(weight)}


def _weighted(
    concepts: Sequence[ConceptFile | str | Path], weights: Sequence[Weight | float | str | None]
) -> list[tuple[ConceptFile, Weight]]:
    """Every concept with its weight, the file's own where none is given."""
    if weights and len(weights) != len(concepts):
        raise BadInput(f"{len(weights)} weights for {len(concepts)} concepts")
    weighted = []
    for concept, weight in zip(concepts, weights or [None] * len(concepts), strict=True):
        file = concept if isinstance(concept, ConceptFile) else load(concept)
        given = Weight.parse(weight) if isinstance(weight, (int, float, str)) else weight
        weighted.append((file, given or file.meta.sampling.weight))
    return weighted


def _noise_offset(files: Sequence[ConceptFile]) -> float:
    """The largest that the concepts were learned with."""
    return max((file.meta.sampling.noise_offset for file in files), default=0.0)


def _inversion_strength(files: Sequence[ConceptFile], clip: str | Path | None, strength: float | None) -> float:
    """The given one, or else the largest that the concepts were learned for."""
    learned = {file.meta.name: file.meta.sampling.inversion for file in files if file.meta.sampling.inversion}
    if clip is None:
        for name in learned:
            _log.warning("%s was learned to start from its clip's noise: name the clip with --inversion", name)
    if strength is not None:
        return strength
    return max(learned.values(), default=0.5)


def _appearance(
    base: VideoBase, files: Sequence[ConceptFile], picture: str | Path | None, strength: tuple[float, float] | None
) -> Appearance | None:
    """What the condition layers of the given motions are told; None where there are none."""
    guided = [(file.condition, file.meta.sampling.appearance) for file in files if file.condition is not None]
    if not guided:
        if picture is not None:
            raise BadInput("--appearance: none of the concepts was learned with appearance guidance")
        return None
    width, learned = guided[0]
    if picture is None:
        _log.warning("no appearance picture: motions that were learned with appearance guidance get the zero vector")
        return Appearance(vector=torch.zeros(1, 1, width), strength=strength or learned)
    size = (base.defaults.height, base.defaults.width)
    pixels = to_pixels(media.crop_wide(media.read_image(Path(picture)).pixels, size)[None])
    return Appearance(vector=base.embed_images(pixels), strength=strength or learned)


def _inversion(base: VideoBase, clip: str | Path, strength: float, config: SampleConfig) -> Inversion:
    """The latents of a clip, its window beginning at its first frame."""
    if not 0 <= strength <= 1:
        raise BadInput(f"--inversion-strength {strength}: between 0 and 1")
    read = media.read_clip(Path(clip), size=(config.height, config.width))
    plan = media.plan_frames(len(read.frames), read.fps, frames=config.frames, rate=config.fps, short="loop")
    mean, _ = base.encode_video(to_pixels(read.frames[list(plan.indices(plan.starts[0]))]))
    return Inversion(latents=mean, strength=strength)
