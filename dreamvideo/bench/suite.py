"""A suite: which methods learn which concepts, and which prompts they are then asked, with which seeds. It is TOML.

    summary = "Joint customisation."
    base = "emojiworld"

    [learners.plain]                      # a method with other settings than its recipe's, by a name
    method = "dreamvideo-motion"
    settings.method.condition = false

    [comparisons.joint]
    subjects = ["fox"]                    # folders in subjects/ and motions/ of the suite's data
    motions = ["hopping"]
    prompts = ["{subject} {motion} in the snow"]
    seeds = [0, 1]

    [comparisons.joint.entries]           # the first is what the others are compared with
    DreamVideo = { subject = "dreamvideo-subject", motion = "dreamvideo-motion" }
    "no guidance" = { subject = "dreamvideo-subject", motion = "plain" }
    "the base" = {}

`{subject}` is the learned word with its article, `a <fox>`, or the class word where an entry learns no subject; in the
same words, the class word's, metrics read the prompt. `{motion}` is the motion's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar

from pydantic import ConfigDict

from dreamvideo import catalogue
from dreamvideo.bundled import DEFAULT_BASE, EXAMPLES
from dreamvideo.config import build, read_toml
from dreamvideo.errors import BadConfig

__all__ = ["Comparison", "Entry", "Learner", "Material", "Published", "Source", "Suite", "read", "shipped"]

_FOLDER = Path(__file__).parent / "suites"
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A method, its recipe, and settings over it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    method: str
    recipe: str | None = None
    """A shipped recipe's name or a .toml file; by default the one named like the base, else `paper`."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of a comparison: what it learns, if anything."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    subject: str | None = None
    """A name in `learners`, or a method's."""
    motion: str | None = None
    base: str | None = None
    """Instead of the suite's; then without image encoder."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper reports, on its own base and data."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    table: str
    base: str
    rows: Mapping[str, Mapping[str, float]]
    """Entry -> metric -> value."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Entries that are asked the same: every prompt of every concept with every seed."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    title: str
    subjects: tuple[str, ...] = ()
    motions: tuple[str, ...] = ()
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    entries: Mapping[str, Entry]
    """The first is what the others are compared with."""
    published: Published | None = None


@dataclass(frozen=True, kw_only=True)
class Material:
    """A concept of outside data: what it is called, what of its source it is, and how to recognise it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    take: str
    """Path in the source."""
    files: int | None = None
    """Pictures or clips; unset: as many as there are."""
    name: str | None = None
    """What prompts call a motion; default the folder's name."""
    word: str | None = None
    """A subject's class word."""
    caption: str | None = None
    """Of a motion's clips."""
    frames: tuple[int, int] | None = None
    """First and last frame of the source's clip that are taken, both included, counted from 0."""
    sha256: str | None = None
    """Of the files' own sha256 in the order of their names; unset: not on record."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where outside data come from."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    address: str
    terms: str
    """What its makers say of its use."""
    how: str
    """How it becomes the suite's data."""
    material: Mapping[str, Material]
    """By the concept's folder in the suite's data: `subjects/NAME`, `motions/NAME`."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Comparisons on one base."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    """Of its file."""
    summary: str
    base: str = DEFAULT_BASE
    image_encoder: str | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    """`clip`, `dino`: hub id or folder of what metrics look with, where the base's card names none; `lpips`: folder."""
    data: str | None = None
    """Folder of `subjects/NAME` and `motions/NAME`; the bundled examples when unset."""
    learning: Mapping[str, Any] = field(default_factory=dict)
    """Settings over every recipe, under the learner's own."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `sample.SampleConfig`."""
    learners: Mapping[str, Learner] = field(default_factory=dict)
    comparisons: Mapping[str, Comparison]
    sources: Mapping[str, Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        roles = {entry.name: "subject" if entry.learns == "image" else "motion" for entry in catalogue.methods()}
        for title, comparison in self.comparisons.items():
            _check_prompts(f"comparisons.{title}", comparison)
            for name, entry in comparison.entries.items():
                for role, learner in (("subject", entry.subject), ("motion", entry.motion)):
                    place = f"comparisons.{title}.entries.{name}.{role}"
                    if learner is None:
                        continue
                    if roles.get(self.learner(learner).method) != role:
                        raise BadConfig(f"{place}: {learner!r} is neither in [learners] nor a {role} method")
                    if not getattr(comparison, f"{role}s"):
                        raise BadConfig(f"{place}: the comparison has no {role}s")

    @property
    def folder(self) -> Path:
        """Where the concepts' folders are."""
        return EXAMPLES if self.data is None else Path(self.data)

    @property
    def size(self) -> int:
        """How many videos it asks for; those that two comparisons share count twice."""
        return sum(
            len(c.entries) * max(1, len(c.subjects)) * max(1, len(c.motions)) * len(c.prompts) * len(c.seeds)
            for c in self.comparisons.values()
        )

    def learner(self, name: str) -> Learner:
        """The learner of that name; a method's name is its learner with nothing changed."""
        return self.learners.get(name) or Learner(method=name)

    def material(self, place: str) -> Material | None:
        """What the manifest says of a concept, by its folder; None for data that need no manifest."""
        found = (source.material.get(place) for source in self.sources.values())
        return next((material for material in found if material is not None), None)


def _check_prompts(where: str, comparison: Comparison) -> None:
    wanted = {role for role in ("subject", "motion") if getattr(comparison, f"{role}s")}
    for prompt in comparison.prompts:
        try:
            named = {name for _, name, _, _ in Formatter().parse(prompt) if name is not None}
        except ValueError as error:
            raise BadConfig(f"{where}: prompt {prompt!r}: {error}") from error
        if named != wanted:
            says = ", ".join(f"{{{role}}}" for role in sorted(wanted)) or "nothing"
            raise BadConfig(f"{where}: prompt {prompt!r} must have in braces what the comparison has: {says}")
    for name in ("prompts", "seeds", "entries"):
        if not getattr(comparison, name):
            raise BadConfig(f"{where}: no {name}")


def shipped() -> tuple[str, ...]:
    """The names of the suites that come with the package."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))


def read(reference: str) -> Suite:
    """A suite by its shipped name or its .toml file.

    Raises:
        BadConfig: there is none, or it says what a suite cannot say.
    """
    if reference.endswith(".toml"):
        file = Path(reference)
    elif reference in shipped():
        file = _FOLDER / f"{reference}.toml"
    else:
        raise BadConfig(f"there is no suite {reference!r}; there are {', '.join(shipped())}; or give a .toml file")
    return build(Suite, {**read_toml(file), "name": file.stem}, where=str(reference))
