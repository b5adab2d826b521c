"""A concept in one file: named adapter sets and all that is needed to use them, as safetensors.

Tensors are named `path.port.name`, or `SET/path.port.name` where two sets have one of the same name. The header holds
one entry, `dreamvideo`, a JSON object with sorted keys, so that equal contents are equal bytes. Loading runs no code
and needs no other file.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydantic
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.delta import Delta
from dreamvideo.adapters.graft import AdapterSet, Kind, Site
from dreamvideo.adapters.kv import KeyValue
from dreamvideo.adapters.lora import LoRA
from dreamvideo.adapters.ports import Reach
from dreamvideo.adapters.temporal_attention import TemporalAttention
from dreamvideo.adapters.weight import Weight
from dreamvideo.adapters.words import Word
from dreamvideo.errors import BadFile, BadInput
from dreamvideo.files import whole

__all__ = ["HEADER", "ConceptFile", "Described", "Meta", "Sampling", "load", "read_meta", "save"]

FORMAT = "dreamvideo-1"
HEADER = "dreamvideo"

KINDS: dict[str, type[Kind]] = {
    kind.label: kind for kind in (Bottleneck, Delta, KeyValue, LoRA, TemporalAttention, Word)
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a concept wants to be sampled, unless its user says otherwise."""

    noise_offset: float = 0.0
    """Strength of the offset noise that it was learned with."""
    appearance: tuple[float, float] = (1.0, 0.0)
    """Strength of appearance guidance in the conditional and the unconditional branch."""
    weight: Weight = field(default_factory=Weight)
    """Factor on its deltas."""
    phrase: str = "{word}"
    """What `<name>` means in a prompt; `{word}` is the learned word, `{class}` the class word."""
    inversion: float | None = None
    """Share of its clip's inverted noise in the start; None: the method starts from noise alone."""
    reach: Reach | None = None
    """The spatial self-attention that it was learned with, where it asks for one."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a concept file says of itself."""

    name: str
    """Of the concept; `<name>` is its learned word, if it has one."""
    role: str
    """`subject` or `motion`."""
    word: str | None = None
    """The class word of a subject."""
    caption: str | None = None
    """The caption of a motion's clips."""
    family: str
    """Of the base."""
    base: str
    """Name, hub id or folder name of the base."""
    fingerprint: tuple[float, ...] = ()
    """A few weights of the base, so that another base is noticed whatever its name."""
    licence: str | None = None
    """Of the base; it holds for what is learned from it."""
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The method's fields."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Stage -> steps done."""
    recipe: str | None = None
    """Hash of the resolved recipe."""
    sampling: Sampling = field(default_factory=Sampling)
    created_by: str


@dataclass(frozen=True)
class Described:
    """How a set is to be built."""

    kind: str
    options: Mapping[str, Any]
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class ConceptFile:
    """A learned concept: what `learn` returns and `generate` takes."""

    meta: Meta
    sets: Mapping[str, AdapterSet]
    path: Path | None = None

    @property
    def condition(self) -> int | None:
        """Width of the image vector of appearance guidance, where it was learned with any."""
        kinds = (adapters.kind for adapters in self.sets.values())
        widths = (kind.condition for kind in kinds if isinstance(kind, Bottleneck))
        return next((width for width in widths if width is not None), None)


_SETS = pydantic.TypeAdapter(dict[str, Described])


def save(path: str | Path, concept: ConceptFile) -> None:
    """Write a concept, whole or not at all; equal concepts give equal bytes."""
    states = {name: adapters.state_dict() for name, adapters in concept.sets.items()}
    claims = Counter(key for state in states.values() for key in state)
    tensors = {
        key if claims[key] == 1 else f"{name}/{key}": tensor.cpu().contiguous()
        for name, state in states.items()
        for key, tensor in state.items()
    }
    described = {
        name: asdict(Described(adapters.kind.label, asdict(adapters.kind), adapters.sites))
        for name, adapters in concept.sets.items()
    }
    header = {"format": FORMAT, "sets": described, **asdict(concept.meta)}
    with whole(path) as draft:
        save_file(tensors, draft, metadata={HEADER: json.dumps(header, sort_keys=True)})


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(HEADER)
    except FileNotFoundError as error:
        raise BadFile(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{path}: not a safetensors file, or only a part of one ({error})") from error
    if text is None:
        raise BadFile(f"{path}: not a concept of ours; `dreamvideo convert` reads other formats")
    try:
        header = json.loads(text)
        form = header.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{path}: its header is broken") from error
    if form != FORMAT:
        raise BadFile(f"{path}: made by a newer version of dreamvideo; update to read it")
    return header


def read_meta(path: str | Path) -> tuple[Meta, dict[str, Described]]:
    """What a file says of itself, and how its sets are to be built, without its tensors.

    Raises:
        BadFile: not a concept file, broken, or of a newer format.
    """
    header = _header(Path(path))
    try:
        sets = _SETS.validate_python(header.pop("sets", None))
        return pydantic.TypeAdapter(Meta).validate_python(header), sets
    except pydantic.ValidationError as error:
        raise BadFile(f"{path}: its header is broken: {error.errors()[0]['msg']}") from error


def load(path: str | Path) -> ConceptFile:
    """Read a concept.

    Raises:
        BadFile: as `read_meta`; or tensors and header disagree: nothing matched, one missing or one too many.
    """
    path = Path(path)
    meta, described = read_meta(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    sets = {}
    for name, parts in described.items():
        if parts.kind not in KINDS:
            raise BadFile(f"{path}: adapters of kind {parts.kind!r} are unknown to this version of dreamvideo")
        try:
            kind = pydantic.TypeAdapter(KINDS[parts.kind]).validate_python(parts.options)
            adapters = AdapterSet(kind, parts.sites)
            names = {key: f"{name}/{key}" if f"{name}/{key}" in tensors else key for key in adapters.state_dict()}
            own = {key: tensors.pop(stored) for key, stored in names.items() if stored in tensors}
            adapters.load_state_dict(own)
        except (pydantic.ValidationError, BadInput) as error:
            why = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
            raise BadFile(f"{path}: its set {name} is broken: {why}") from error
        sets[name] = adapters.requires_grad_(False)
    if tensors or not sets:
        raise BadFile(f"{path}: {len(tensors)} tensors belong to no set in its header")
    return ConceptFile(meta, sets, path)
