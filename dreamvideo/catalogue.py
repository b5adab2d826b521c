"""The methods, edits, metrics and bases there are, read from their source: a list must not cost an import of torch.

What the classes state as literals is what `methods.available()` and `bases.available()` find on the imported classes;
a class that states less is an error here and not an empty cell.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamvideo.bundled import bundled, card

__all__ = ["BaseEntry", "EditEntry", "MethodEntry", "MetricEntry", "bases", "edits", "half", "methods", "metrics"]

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class MethodEntry:
    """A method: what it is called by, what it learns from, and the recipes that ship for it."""

    name: str
    learns: str
    """`image` or `clip`."""
    summary: str
    recipes: tuple[str, ...]


@dataclass(frozen=True)
class EditEntry:
    """A method that edits a clip: what it is called by, and the recipes that ship for it."""

    name: str
    summary: str
    recipes: tuple[str, ...]


@dataclass(frozen=True)
class MetricEntry:
    """A metric: what it is called by, what must be there for it beside the video, and which way is better."""

    name: str
    needs: str
    higher_is_better: bool
    summary: str


@dataclass(frozen=True)
class BaseEntry:
    """A base: what it is called by, whose licence holds for what is learned from it, and what must be there first."""

    name: str
    family: str
    licence: str | None
    summary: str
    needs: str


def methods() -> tuple[MethodEntry, ...]:
    """Every method, by name.

    Raises:
        ValueError: a class in METHODS does not state its name, or what it learns, as a literal.
    """
    found = (
        MethodEntry(_literal(kind, "name"), _literal(kind, "learns"), _summary(kind), _recipes(_literal(kind, "name")))
        for kind in _listed(_PACKAGE / "methods", "METHODS")
    )
    return tuple(sorted(found, key=lambda entry: entry.name))


def half(method: str, role: str) -> str:
    """The name of a paper's method for `subject` or `motion`, where it has one for each: `lora` is `lora-subject` or
    `lora-motion`. Any other name stays as it is."""
    name = f"{method}-{role}"
    return name if name in {entry.name for entry in methods()} else method


def edits() -> tuple[EditEntry, ...]:
    """Every edit, by name.

    Raises:
        ValueError: a class in EDITS does not state its name as a literal.
    """
    found = (
        EditEntry(_literal(kind, "name"), _summary(kind), _recipes(_literal(kind, "name")))
        for kind in _listed(_PACKAGE / "edits", "EDITS")
    )
    return tuple(sorted(found, key=lambda entry: entry.name))


def metrics() -> tuple[MetricEntry, ...]:
    """Every metric, by name.

    Raises:
        ValueError: a class in METRICS does not state its name, or what it needs, as a literal.
    """
    found = (
        MetricEntry(
            _literal(kind, "name"), _literal(kind, "needs"), _literal(kind, "higher_is_better", True), _summary(kind)
        )
        for kind in _listed(_PACKAGE / "metrics", "METRICS")
    )
    return tuple(sorted(found, key=lambda entry: entry.name))


def bases() -> tuple[BaseEntry, ...]:
    """Every family's bases: bundled ones, its random one, those that it knows by hub id, any folder of its kind.

    Raises:
        ValueError: a FAMILY does not state its family, tiny_name or denoiser_class as a literal.
    """
    found: list[BaseEntry] = []
    for kind in _listed(_PACKAGE / "bases", "FAMILY"):
        family, summary = _literal(kind, "family"), _summary(kind)
        encoder = _literal(kind, "image_encoder_id", None)
        guided = f"; for appearance guidance also --image-encoder {encoder}" if encoder else ""
        for name, folder in bundled().items():
            config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
            if config["_class_name"] == _literal(kind, "denoiser_class"):
                found.append(BaseEntry(name, family, card(folder).licence, card(folder).summary, "nothing"))
        noise = "Random weights: shows that everything runs, and makes noise."
        found.append(BaseEntry(_literal(kind, "tiny_name"), family, None, noise, "nothing"))
        for name, licence in _literal(kind, "names", {}).items():
            found.append(BaseEntry(name, family, licence, summary, f"its weights, from the hub{guided}"))
        folder = f"FOLDER ({_literal(kind, 'denoiser_class')})"
        found.append(BaseEntry(folder, family, None, summary, f"a folder or hub id in diffusers' layout{guided}"))
        if addition := _literal(kind, "addition", None):
            needs = f"two folders or hub ids in diffusers' layout, a + between them{guided}"
            found.append(BaseEntry(f"FOLDER+FOLDER ({addition})", family, None, summary, needs))
    return tuple(found)


@dataclass(frozen=True)
class _Class:
    """A class as its source states it."""

    file: Path
    tree: ast.ClassDef


def _listed(folder: Path, label: str) -> Iterator[_Class]:
    """The classes that the modules of `folder` name in their `label`: one name, or a tuple of names."""
    for file in sorted(folder.glob("*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
        value = _assigned(module).get(label)
        for item in value.elts if isinstance(value, ast.Tuple) else [value] if value else []:
            if not isinstance(item, ast.Name) or item.id not in classes:
                raise ValueError(f"{file}: {label} names {ast.unparse(item)}, which is no class of this file")
            yield _Class(file, classes[item.id])


def _assigned(node: ast.Module | ast.ClassDef) -> dict[str, ast.expr]:
    """The names that a module's or a class's body gives a value, annotated or not."""
    values: dict[str, ast.expr] = {}
    for line in node.body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and line.value is not None:
                values[target.id] = line.value
    return values


def _literal(kind: _Class, name: str, *default: Any) -> Any:
    """A class-level constant; without a default it must be there."""
    value = _assigned(kind.tree).get(name)
    if value is None and default:
        return default[0]
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{kind.file}: class {kind.tree.name} must state {name} as a literal") from error


def _summary(kind: _Class) -> str:
    """The first line of the class's docstring."""
    lines = (ast.get_docstring(kind.tree) or "").splitlines()
    if not lines:
        raise ValueError(f"{kind.file}: class {kind.tree.name} needs a docstring")
    return lines[0].removesuffix(":")


def _recipes(method: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (_PACKAGE / "recipes" / method).glob("*.toml")))
