"""Files of learned words <-> concepts: the official code's, and textual inversion's that other tools read.

official             {"string_to_token": {"*": 265}, "string_to_param": ParameterDict {"*": (n, width)}}
AUTOMATIC1111        the same, with an entry "name"
textual inversion    {"<name>": (n, width)}, as diffusers writes it; AUTOMATIC1111 reads it too
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamvideo.adapters.file import ConceptFile, Meta, Sampling
from dreamvideo.adapters.graft import AdapterSet, Site
from dreamvideo.adapters.words import Word, learned_word
from dreamvideo.errors import BadFile, BadInput, Unsupported
from dreamvideo.files import whole
from dreamvideo.official.adapters import BASE, FAMILY
from dreamvideo.official.checkpoint import naming, read_data, write_data

__all__ = ["join", "named_vectors", "read_word", "write_textual_inversion", "write_word"]

STAR = "*"
STAR_ID = 265
"""Of `*` in CLIP's vocabulary: the token whose vector the official code replaces."""


def read_word(
    path: str | Path,
    *,
    created_by: str,
    name: str | None = None,
    word: str | None = None,
    base: str = BASE,
    licence: str | None = None,
) -> ConceptFile:
    """Read a learned word, in any of the three forms, as a concept with the set `word`.

    Args:
        name: the word between the angle brackets; None takes it from the file, which the official form does not have.
        word: the class word that it stands for.
        base: name of the base that it was learned on.
        licence: of that base.

    Raises:
        BadFile: unreadable, or not one learned word.
        BadInput: neither the file nor `name` says a usable name.
    """
    data = read_data(path)
    with naming(path):
        said, vectors = named_vectors(data)
    name = name or said.removeprefix("<").removesuffix(">")
    if name == STAR or not re.fullmatch(r"[^<>\s]+", name):
        raise BadInput(f"{path}: the file calls its word {said!r}, which no prompt can name; give it a name")
    site = Site("tokens", "word", "text", vectors.shape[1])
    meta = Meta(
        name=name,
        role="subject",
        word=word,
        family=FAMILY,
        base=base,
        licence=licence,
        method="dreamvideo-subject",
        sampling=Sampling(noise_offset=0.1),
        created_by=created_by,
    )
    return ConceptFile(meta, {"word": learned_word(name, vectors, site).requires_grad_(False)}, Path(path))


def write_word(path: str | Path, concept: ConceptFile) -> None:
    """Write a concept's word in the official form.

    Raises:
        Unsupported: the concept does not have exactly one word.
    """
    _, vectors = _word_of(concept)
    parameters = nn.ParameterDict({STAR: nn.Parameter(vectors)})
    write_data(path, {"string_to_token": {STAR: torch.tensor(STAR_ID)}, "string_to_param": parameters})


def write_textual_inversion(path: str | Path, concept: ConceptFile) -> None:
    """Write a concept's word as textual inversion, for `load_textual_inversion` of diffusers: `.safetensors`,
    `.pt` or `.bin`.

    Raises:
        Unsupported: the concept does not have exactly one word.
        BadInput: another ending.
    """
    name, vectors = _word_of(concept)
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        with whole(path) as draft:
            save_file({f"<{name}>": vectors}, draft)
    elif suffix in (".bin", ".pt"):
        write_data(path, {f"<{name}>": vectors})
    else:
        raise BadInput(f"{path}: textual inversion is written as .safetensors, .pt or .bin")


def join(concepts: Sequence[ConceptFile]) -> ConceptFile:
    """One concept with the sets of all: a subject is a word and an identity adapter, which official files keep apart.

    The first says how it is sampled; what it does not say of itself is taken from the others.

    Raises:
        BadInput: they differ in name, role or base, or two have a set of the same name.
    """
    first = concepts[0]
    sets: dict[str, AdapterSet] = {}
    meta = first.meta
    for other in concepts:
        mine, yours = ((m.name, m.role, m.family, m.base) for m in (meta, other.meta))
        if mine != yours:
            raise BadInput(f"{other.path}: {' '.join(yours)} cannot be joined with {' '.join(mine)}")
        for label in sets.keys() & other.sets.keys():
            raise BadInput(f"{other.path}: a second set {label}; one concept has one")
        sets |= other.sets
        meta = replace(
            meta,
            word=meta.word or other.meta.word,
            caption=meta.caption or other.meta.caption,
            licence=meta.licence or other.meta.licence,
            fingerprint=meta.fingerprint or other.meta.fingerprint,
            settings={**other.meta.settings, **meta.settings},
            steps={**other.meta.steps, **meta.steps},
        )
    return ConceptFile(meta, sets)


def named_vectors(data: Any) -> tuple[str, Tensor]:
    """What a file calls its word, `*` in the official form, and its vectors (n, width).

    Raises:
        BadFile: the data is not one learned word.
    """
    entries, said = data, None
    if isinstance(data, dict) and "string_to_param" in data:
        entries, said = data["string_to_param"], data.get("name")
    if not isinstance(entries, dict) or len(entries) != 1:
        raise BadFile("not one learned word: expected string_to_param with one entry, or one tensor")
    token, vectors = next(iter(entries.items()))
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2):
        raise BadFile(f"entry {token!r} is not one or more token vectors")
    return str(said or token), vectors.reshape(-1, vectors.shape[-1])


def _word_of(concept: ConceptFile) -> tuple[str, Tensor]:
    words = [
        (adapters.kind.name, vectors)
        for adapters in concept.sets.values()
        if isinstance(adapters.kind, Word)
        for vectors in adapters.state_dict().values()
    ]
    if len(words) != 1:
        raise Unsupported(f"concept {concept.meta.name} has {len(words)} learned words; one is needed")
    name, vectors = words[0]
    return name, vectors.cpu().contiguous()
