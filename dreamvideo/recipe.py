"""A run as a value: what is learned, from what, by which method, how."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dreamvideo import config, methods
from dreamvideo.bases.base import Compile, VideoBase
from dreamvideo.concept import Concept
from dreamvideo.data import DataConfig
from dreamvideo.errors import BadConfig
from dreamvideo.methods.method import Method

__all__ = ["DEFAULT", "FREE", "SEVERAL", "Recipe", "TrainConfig", "check_sections", "read", "recipes", "resolve"]

DEFAULT = "paper"
FREE = ("train.save_every", "train.preview_every", "train.offload")
"""Settings that change nothing that is learned."""
SEVERAL = "several"
"""The table of a recipe file that is laid over the rest where the concept has more than one example."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the loop needs to know, whatever the method."""

    batch: Annotated[int, Field(ge=1)] = 4
    """Examples a step, on each process."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients are averaged before an update."""
    steps: Annotated[int | None, Field(ge=1)] = None
    """Updates of every stage, instead of the method's own numbers."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """Updates over which the learning rate rises evenly to its value; then it is constant."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float | None, Field(gt=0)] = None
    """Largest norm of the gradient."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in the frozen denoiser's convolutional blocks while learning; the official code leaves 0.1 on."""
    seed: int = 0
    rematerialise: bool = False
    """Keep no activations inside blocks and compute them again: less memory, about a third more time."""
    offload: bool = False
    """Autoencoder and image encoder wait in main memory once the examples are encoded; previews decode there."""
    compile: Compile = "none"
    """What torch.compile is given: each transformer block, the denoiser, or the denoiser for CUDA graphs. It takes
    minutes at first, seconds when torch has the kernels on disk: see docs/speed.md for when that pays."""
    save_every: Annotated[int, Field(ge=1)] = 200
    """Updates between states from which a run can go on, and between checkpoints."""
    preview_every: Annotated[int, Field(ge=0)] = 0
    """Updates between sample videos; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines a learned concept."""

    base: Mapping[str, Any]
    concept: Mapping[str, Any]
    method: Method
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def plain(self) -> dict[str, Any]:
        """As nested dicts for TOML, the method's name among its settings."""
        values = config.plain(self)
        return {**values, "method": {"name": self.method.name, **values["method"]}}

    @property
    def digest(self) -> str:
        """Hash of all that determines the result."""
        settings = {name: value for name, value in config.flatten(self.plain()).items() if name not in FREE}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def recipes(method: str) -> tuple[str, ...]:
    """The names of the recipes that ship for a method."""
    folder = files("dreamvideo") / "recipes" / method
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir())) if folder.is_dir() else ()


def read(method: str, base: VideoBase, recipe: str | None) -> dict[str, Any]:
    """The sections of a shipped recipe or of a TOML file; without a name the one named like the base, else `paper`.

    Raises:
        BadConfig: no such recipe.
    """
    shipped = recipes(method)
    name = recipe or (base.name if base.name in shipped else DEFAULT)
    if name.endswith(".toml"):
        return config.read_toml(name)
    if name in shipped:
        return config.read_toml(str(files("dreamvideo") / "recipes" / method / f"{name}.toml"))
    raise BadConfig(f"--recipe {name}: {method} has {', '.join(shipped) or 'none'}; or give a .toml file")


def check_sections(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a recipe with other sections than the known ones.

    Raises:
        BadConfig: with the first of the others.
    """
    if unknown := values.keys() - set(known):
        raise BadConfig(f"the recipe: there is no section {sorted(unknown)[0]!r}; it has {', '.join(known)}")


def resolve(
    method: str, base: VideoBase, concept: Concept, *, recipe: str | None = None, settings: Iterable[Mapping] = ()
) -> Recipe:
    """A complete recipe.

    Args:
        recipe: a shipped recipe's name or a TOML file; by default the one named like the base, else `paper`.
        settings: nested dicts laid over it, the later one on top.

    Raises:
        BadConfig: no such recipe, or an unknown or wrong setting.
    """
    values = read(method, base, recipe)
    several = values.pop(SEVERAL, {})
    values = config.merged(values, several if len(concept.examples) > 1 else {}, *settings)
    check_sections(values, ("method", "train", "data"))
    return Recipe(
        base={"name": base.name, "family": base.family, "dtype": base.precision},
        concept={
            "name": concept.name,
            "word": concept.word,
            "caption": concept.caption,
            "files": {example.path.name: example.digest[:12] for example in concept.examples},
            "masks": {example.path.name: _digest(example.mask) for example in concept.examples if example.mask},
            "captions": {example.path.name: example.caption for example in concept.examples if example.caption},
        },
        method=config.build(methods.find(method), values.get("method", {}), where="method"),
        train=config.build(TrainConfig, values.get("train", {}), where="train"),
        data=config.build(DataConfig, values.get("data", {}), where="data"),
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
