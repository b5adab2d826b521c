"""Settings as typed values: frozen dataclasses <-> TOML, strict, with dotted overrides.

A default is written once, on its field. pydantic validates; its errors are turned into one line that names
the setting, says what was expected, and for an unknown name gives the nearest right one.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tomli_w

from dreamvideo.errors import BadConfig
from dreamvideo.files import write_text

__all__ = ["build", "differences", "flatten", "merged", "parse_setting", "plain", "read_toml", "write_toml"]

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Make the dataclass `kind` from plain values; `where` names the section in messages.

    Raises:
        BadConfig: an unknown name, or a value of another type or out of range.
    """
    _check_names(kind, values, where)
    try:
        # Extra keys are refused above; strict would refuse an int where a float is meant, and lists for tuples.
        return pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (where, *first["loc"]))
        raise BadConfig(f"{place}: {first['msg']}, not {first['input']!r}") from error


def _check_names(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Refuse names that a dataclass, or one inside it, does not know; pydantic would pass over them."""
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'no settings'}"
            raise BadConfig(f"{where}: there is no setting {name!r}; {hint}")
        if dataclasses.is_dataclass(known[name]) and isinstance(value, Mapping):
            _check_names(known[name], value, f"{where}.{name}")


def plain(value: Any) -> Any:
    """A dataclass as dicts, lists and scalars for TOML or JSON; fields that are None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: plain(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        BadConfig: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadConfig(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"{path}: not a readable TOML file ({error})") from error


def write_toml(path: str | Path, value: Any) -> None:
    """Write a dataclass or nested dict as TOML, whole or not at all."""
    write_text(path, tomli_w.dumps(plain(value)))


def parse_setting(text: str) -> dict[str, Any]:
    """`"train.batch=4"` -> `{"train": {"batch": 4}}`; the value is TOML, or else a plain string.

    Raises:
        BadConfig: there is no `=`, or no name before it.
    """
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise BadConfig(f"--set {text}: write it as section.field=value")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts laid over each other, the later one on top."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            below = result.get(name)
            both = isinstance(value, Mapping) and isinstance(below, dict)
            result[name] = merged(below, value) if both else value
    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"batch": 4}}` -> `{"train.batch": 4}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Iterable[str] = ()) -> list[str]:
    """Where two nested dicts differ, as lines `train.batch: 4 -> 2`."""
    before, after = flatten(old), flatten(new)
    names = [name for name in sorted(before.keys() | after.keys()) if name not in set(ignore)]
    return [
        f"{name}: {before.get(name, 'unset')} -> {after.get(name, 'unset')}"
        for name in names
        if before.get(name) != after.get(name)
    ]
