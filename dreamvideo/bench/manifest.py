"""A suite's outside data against its manifest: what is there, what is not, what is not what it was."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dreamvideo.bench.suite import Material, Suite
from dreamvideo.concept import Survey, survey

__all__ = ["Finding", "check", "wanted"]

State = Literal["there", "unrecorded", "changed", "missing"]


@dataclass(frozen=True)
class Finding:
    """One concept's folder."""

    place: str
    source: str
    state: State
    """`unrecorded`: it is there, and the manifest has no hash to hold it against."""
    found: str
    unchecked: tuple[str, ...]
    """What the manifest does not have on record, so that nobody can check it."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def check(suite: Suite) -> list[Finding]:
    """Look at every folder that the manifest names."""
    return [
        Finding(place, name, *_state(suite.folder / place, material), _gaps(place, material))
        for name, source in suite.sources.items()
        for place, material in source.material.items()
    ]


def wanted(findings: Sequence[Finding]) -> list[str]:
    """The sources from which something is missing or changed."""
    return list(dict.fromkeys(f.source for f in findings if f.state in ("missing", "changed")))


def _state(folder: Path, material: Material) -> tuple[State, str]:
    if not folder.is_dir():
        return "missing", f"no such folder; it is {material.take} of its source"
    seen = survey(folder)
    if seen.problems:
        return "changed", f"{seen.problems[0].path.name}: {seen.problems[0].why}"
    if material.files is not None and len(seen.examples) != material.files:
        return "changed", f"{len(seen.examples)} files, not {material.files}"
    if material.frames is not None:
        first, last = material.frames
        wrong = [e.path.name for e in seen.examples if e.frames != last - first + 1]
        if wrong:
            return "changed", f"{wrong[0]} has not the {last - first + 1} frames {first} to {last}"
    found = _hash(seen)
    if material.sha256 is None:
        return "unrecorded", f"sha256 {found}"
    return ("there", "") if found == material.sha256 else ("changed", f"sha256 {found}, not {material.sha256}")


def _gaps(place: str, material: Material) -> tuple[str, ...]:
    known = {"contents": material.sha256, "number of files": material.files}
    if place.startswith("motions/"):
        known["frames"] = material.frames
    return tuple(name for name, value in known.items() if value is None)


def _hash(seen: Survey) -> str:
    """Of the files' hashes, in the order of their names."""
    ordered = sorted(seen.examples, key=lambda example: example.path.name)
    return hashlib.sha256("".join(example.digest for example in ordered).encode()).hexdigest()
