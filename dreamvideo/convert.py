"""Between our files and those of the official code and of diffusers, in both directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from diffusers import UNet3DConditionModel

from dreamvideo import bases, official
from dreamvideo.adapters.file import ConceptFile, load, save
from dreamvideo.adapters.lora import LoRA
from dreamvideo.adapters.words import Word
from dreamvideo.errors import BadInput
from dreamvideo.files import whole

__all__ = ["Facts", "Form", "convert"]

Form = Literal["dreamvideo", "official", "diffusers"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What official files do not say of themselves."""

    name: str | None = None
    """Of the concept; default the target's stem."""
    word: str | None = None
    """Class word of a subject."""
    caption: str | None = None
    """Of a motion's clips."""
    placement: Literal["parallel", "serial"] = "parallel"
    layers: int = 2
    """Residual blocks a level, of the base."""
    appearance_strength: tuple[float, float] = (1.0, 0.0)
    """(1, 1) for a motion that was learned with appearance dropout: the official code's motions of one clip."""
    family: str | None = None
    """Of the base of a LoRA file whose layers several families have; default `unet3d`."""


def convert(sources: Sequence[Path], target: Path, *, to: Form, facts: Facts) -> list[Path]:
    """Write what `sources` hold in another form; what is read is told by its contents.

    dreamvideo: official adapters, an official or diffusers word, or both of one subject -> one concept file. LoRA of
                diffusers, kohya's tools or PEFT (the file, or its folder) -> likewise.
    official:   a concept file -> a folder with its adapters and its word, or, of low-rank sets, with AnimateDiff's
                MotionLoRA; a folder with `unet` -> a UNet checkpoint.
    diffusers:  an official UNet -> `unet` in the folder `target`; a concept file -> its word, for
                `load_textual_inversion`; its low-rank sets -> `pytorch_lora_weights.safetensors` in the folder
                `target`, for `load_lora_weights`, and its word, if it has one, beside it.

    Raises:
        BadInput: a source that cannot become that.
    """
    if facts.family is not None and facts.family not in bases.available():
        raise BadInput(f"--family {facts.family}: one of {', '.join(bases.available())}")
    if to == "dreamvideo":
        save(target, official.join([_concept(source, target, facts) for source in sources]))
        return [target]
    if len(sources) != 1:
        raise BadInput(f"{len(sources)} files to {to}: one at a time")
    (source,) = sources
    if to == "official":
        return _to_official(source, target, facts)
    if source.suffix == ".safetensors":
        return _to_diffusers(load(source), target)
    with whole(target / "unet") as draft:
        official.read_unet(source).save_pretrained(draft)
    return [target / "unet"]


def _concept(source: Path, target: Path, facts: Facts) -> ConceptFile:
    created_by, name = f"dreamvideo {version('dreamvideo')}", facts.name or target.stem
    if (source / "adapter_config.json").is_file():
        source = source / "adapter_model.safetensors"
    form = official.describe(source)["format"]
    if form.startswith("LoRA"):
        return official.read_lora(
            source, name=name, created_by=created_by, family=facts.family, word=facts.word, caption=facts.caption
        )
    if "adapter" not in form:
        return official.read_word(source, created_by=created_by, name=name, word=facts.word)
    return official.read_adapters(
        source,
        name=name,
        created_by=created_by,
        layout=official.Layout(layers=facts.layers),
        placement=facts.placement,
        appearance=facts.appearance_strength,
        word=facts.word,
        caption=facts.caption,
    )


def _to_diffusers(concept: ConceptFile, target: Path) -> list[Path]:
    if not any(isinstance(adapters.kind, LoRA) for adapters in concept.sets.values()):
        official.write_textual_inversion(target, concept)
        return [target]
    written = [official.write_lora(target, concept)]
    if any(isinstance(adapters.kind, Word) for adapters in concept.sets.values()):
        written.append(target / f"{concept.meta.name}.safetensors")
        official.write_textual_inversion(written[-1], concept)
    return written


def _to_official(source: Path, target: Path, facts: Facts) -> list[Path]:
    if (source / "unet" / "config.json").is_file():
        model = UNet3DConditionModel.from_pretrained(source, subfolder="unet")
        official.write_unet(target, model)
        return [target]
    concept = load(source)
    steps, name = concept.meta.steps, concept.meta.name
    if any(isinstance(adapters.kind, LoRA) for adapters in concept.sets.values()):
        official.write_motion_lora(target / f"{name}.ckpt", concept)
        return [target / f"{name}.ckpt"]
    word = any(isinstance(adapters.kind, Word) for adapters in concept.sets.values())
    adapters = [label for label, each in concept.sets.items() if not isinstance(each.kind, Word)]
    written = []
    if adapters:
        step = max(steps.get(label, 0) for label in adapters)
        written.append(target / f"{name}_adapter_{step:08d}.pth")
        official.write_adapters(written[-1], concept, layout=official.Layout(layers=facts.layers))
    if word:
        written.append(target / f"text_embedding_of_{name}_{steps.get('word', 0):07d}.pth")
        official.write_word(written[-1], concept)
    return written
