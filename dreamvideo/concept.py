"""A folder of pictures or clips -> a Concept: what is learned, with its captions, masks and names.

    FOLDER/            pictures make a subject, clips a motion
      NAME.jpg         any of `media.IMAGE_SUFFIXES` or `media.CLIP_SUFFIXES`
      NAME.txt         its caption; or, for all files, one line each in metadata.jsonl (file_name, caption)
      masks/NAME.png   white is the subject; without it the picture's own alpha channel is the mask
      concept.toml     name, word, caption: all of them optional

A single file and the official code's list, lines of `file|||caption`, are read too. Nothing is dropped silently:
what is not an example is in `left_out` with its reason, and a broken file is an error.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dreamvideo.errors import BadInput, BadMedia
from dreamvideo.media import (
    CLIP_SUFFIXES,
    FRAME_LIMIT,
    IMAGE_SUFFIXES,
    Kind,
    kind_of,
    probe_clip,
    read_image,
    read_mask,
)

__all__ = ["Concept", "Example", "LeftOut", "Survey", "read_concept", "survey"]

_KEYS = ("name", "word", "caption")  # of concept.toml
_METADATA = "metadata.jsonl"
_SETTINGS = "concept.toml"
_MASKS = "masks"
_PLURAL: Mapping[Kind | None, str] = {"image": "pictures", "clip": "clips", None: "pictures or clips"}
_SMALL = 64  # pixels; no base makes smaller videos


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture or clip. `alpha`: its own alpha channel serves as mask. `digest`: sha256 of the file's bytes."""

    path: Path
    kind: Kind
    caption: str | None
    mask: Path | None = None
    alpha: bool = False
    width: int
    height: int
    frames: int = 1
    fps: float | None = None
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A file that is not an example, and why."""

    path: Path
    why: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All that was found at `path`, broken files (`problems`) included."""

    path: Path
    name: str
    word: str | None
    caption: str | None
    examples: tuple[Example, ...]
    left_out: tuple[LeftOut, ...]
    problems: tuple[LeftOut, ...]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What is learned: a subject (kind "image") or a motion (kind "clip"). `word` is the subject's class word.

    `caption` stands for all examples that have none of their own; it is already filled in there.
    """

    name: str
    word: str | None
    caption: str | None
    kind: Kind
    examples: tuple[Example, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class _Source:
    """The files to look at, each with the caption that a list or metadata.jsonl gives it."""

    name: str
    files: Sequence[tuple[Path, str | None]]
    left_out: Sequence[LeftOut] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def read_concept(
    path: str | Path,
    *,
    kind: Kind | None = None,
    name: str | None = None,
    word: str | None = None,
    caption: str | None = None,
) -> Concept:
    """Read a folder, a media file or a list. What is given here wins over what the files say.

    Raises:
        BadInput: `path` is missing, or a text beside the files is wrong, or `kind` must be given.
        BadMedia: a file is broken, or there is no example.
    """
    found = survey(path, kind=kind)
    if found.problems:
        raise BadMedia(_first_problem(found))
    kinds: set[Kind] = {example.kind for example in found.examples}
    if len(kinds) > 1:
        raise BadInput(f"{path}: holds both pictures and clips; say which with a subject or a motion method")
    if not kinds:
        raise BadMedia(_nothing(found, kind))
    examples = found.examples
    if caption is not None:
        examples = tuple(replace(example, caption=caption) for example in examples)
    return Concept(
        name=found.name if name is None else name,
        word=found.word if word is None else word,
        caption=found.caption if caption is None else caption,
        kind=kinds.pop(),
        examples=examples,
        left_out=found.left_out,
    )


def survey(path: str | Path, *, kind: Kind | None = None) -> Survey:
    """Look at every file. A broken one becomes a problem and not an error; with `kind`, the other kind is left out.

    Raises:
        BadInput: `path` is missing, or a text beside the files is wrong.
    """
    path = Path(path)
    source = _source(path)
    general = source.settings.get("caption")
    examples: list[Example] = []
    left_out = list(source.left_out)
    problems: list[LeftOut] = []
    for file, caption in source.files:
        its_kind = kind_of(file)
        if its_kind is None:
            left_out.append(LeftOut(file, "neither a picture nor a clip by its name"))
        elif kind is not None and its_kind != kind:
            left_out.append(LeftOut(file, f"not one of the {_PLURAL[kind]} that are asked for"))
        else:
            try:
                its_caption = caption or _caption_beside(file) or general
                examples.append(_image(file, its_caption) if its_kind == "image" else _clip(file, its_caption))
            except BadMedia as error:
                problems.append(LeftOut(file, str(error).removeprefix(f"{file}: ")))
    return Survey(
        path=path,
        name=source.settings.get("name", source.name),
        word=source.settings.get("word"),
        caption=general,
        examples=tuple(examples),
        left_out=tuple(left_out),
        problems=tuple(problems),
    )


def _first_problem(found: Survey) -> str:
    first, *others = found.problems
    more = f" (and {len(others)} more; `dreamvideo inspect {found.path}` lists them)" if others else ""
    return f"{first.path}: {first.why}{more}"


def _nothing(found: Survey, kind: Kind | None) -> str:
    images, clips = (", ".join(sorted(suffixes)) for suffixes in (IMAGE_SUFFIXES, CLIP_SUFFIXES))
    line = f"{found.path}: holds no {_PLURAL[kind]}; a subject needs pictures ({images}), a motion clips ({clips})"
    if not found.left_out:
        return line
    first = found.left_out[0]
    return f"{line}. Left out: {first.path.name} ({first.why}), {len(found.left_out)} in all"


# Which files there are


def _source(path: Path) -> _Source:
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise BadInput(f"{path}: does not exist; give a folder, a picture, a clip or a list (.txt)")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _Source(path.stem, _list(path))
    if suffix in IMAGE_SUFFIXES | CLIP_SUFFIXES:
        return _Source(path.stem, [(path, _metadata(path.parent).get(path.name))])
    raise BadInput(f"{path}: cannot be used; give a folder, a picture, a clip or a list (.txt)")


def _folder(folder: Path) -> _Source:
    entries = _entries(folder)
    captions = _metadata(folder)
    stems = {entry.stem for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES | CLIP_SUFFIXES}
    beside = {_METADATA, _SETTINGS, _MASKS, *(f"{stem}.txt" for stem in stems)}
    entries = [entry for entry in entries if entry.name not in beside]
    files = [(entry, captions.get(entry.name)) for entry in entries if not entry.is_dir()]
    left_out = [LeftOut(entry, "a folder; only masks/ is looked into") for entry in entries if entry.is_dir()]
    for mask in _entries(folder / _MASKS) if (folder / _MASKS).is_dir() else []:
        if mask.suffix != ".png" or mask.stem not in stems:
            left_out.append(LeftOut(mask, "a mask is named after its picture, NAME.png; this one is not"))
    return _Source(folder.resolve().name, files, left_out, _settings(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BadInput(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def _list(path: Path) -> list[tuple[Path, str | None]]:
    """Read lines of `file|||caption`; files are relative to the list."""
    files = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        file, bar, caption = line.partition("|||")
        if bar:
            files.append((path.parent / file.strip(), caption.strip() or None))
        elif line.strip():
            raise BadInput(f"{path}: line {number} is not `file|||caption`; correct it or give a folder")
    return files


def _metadata(folder: Path) -> Mapping[str, str]:
    """Read the captions by file name from metadata.jsonl."""
    path = folder / _METADATA
    captions = {}
    for number, line in enumerate(_text(path).splitlines() if path.exists() else [], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}: line {number} is not an object with file_name and caption; correct it") from error
        if not isinstance(caption, str):
            raise BadInput(f"{path}: line {number} has a caption that is no text; correct it")
        if not (folder / name).exists():
            raise BadInput(f"{path}: line {number} names {name}, which is not there; correct it")
        captions[name] = caption
    return captions


def _settings(folder: Path) -> Mapping[str, str]:
    path = folder / _SETTINGS
    if not path.exists():
        return {}
    try:
        settings = tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: is not TOML ({error}); correct it") from error
    for key, value in settings.items():
        if key not in _KEYS:
            raise BadInput(f"{path}: unknown key {key!r}; the keys are {', '.join(_KEYS)}")
        if not isinstance(value, str):
            raise BadInput(f"{path}: {key} must be a text in quotes")
    return settings


def _caption_beside(file: Path) -> str | None:
    path = file.with_suffix(".txt")
    return " ".join(_text(path).split()) or None if path.exists() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text; save it as UTF-8") from error


# What is in one of them


def _image(path: Path, caption: str | None) -> Example:
    picture = read_image(path)
    height, width = picture.pixels.shape[:2]
    notes = []
    mask = path.parent / _MASKS / f"{path.stem}.png"
    if mask.exists():
        try:
            _check_mask(mask, width=width, height=height)
        except BadMedia as error:
            raise BadMedia(f"{path}: its mask {error}") from error
    elif picture.alpha is None:
        notes.append("no mask: the whole image counts")
    elif picture.alpha.max() < 128:
        raise BadMedia(f"{path}: is transparent everywhere; make the subject opaque")
    return Example(
        path=path,
        kind="image",
        caption=caption,
        mask=mask if mask.exists() else None,
        alpha=picture.alpha is not None and not mask.exists(),
        width=width,
        height=height,
        digest=_digest(path),
        notes=(*notes, *_size_notes(width, height)),
    )


def _check_mask(path: Path, *, width: int, height: int) -> None:
    mask = read_mask(path)
    # a mask may be smaller than its picture; its sides are then rounded
    if abs(mask.shape[1] * height - mask.shape[0] * width) > max(width, height):
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, the picture is {width}x{height}"
        raise BadMedia(f"{path}: has another shape ({sizes}); make it anew from the picture")
    if not mask.any():
        raise BadMedia(f"{path}: is black everywhere; paint the subject white (255)")


def _clip(path: Path, caption: str | None) -> Example:
    info = probe_clip(path)
    notes = []
    if info.variable:
        notes.append(f"variable frame rate, read at {info.fps:.4g} fps")
    if info.frames > FRAME_LIMIT:
        notes.append(f"only the first {FRAME_LIMIT} frames are used")
    if info.frames == 1:
        notes.append("one frame: nothing moves")
    return Example(
        path=path,
        kind="clip",
        caption=caption,
        width=info.width,
        height=info.height,
        frames=info.frames,
        fps=info.fps,
        digest=_digest(path),
        notes=(*notes, *_size_notes(info.width, info.height)),
    )


def _size_notes(width: int, height: int) -> list[str]:
    return [f"{width}x{height} is smaller than {_SMALL} pixels: it is enlarged"] if min(width, height) < _SMALL else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
