"""What lies in a package is what there is: one file per paper, found by lying there."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from dreamvideo.errors import BadInput

__all__ = ["listed", "named"]


def listed(package: str, label: str) -> dict[str, Any]:
    """Name -> class, from the tuple `label` of every module of a package that has one.

    Raises:
        ValueError: two classes have the same name.
    """
    found: dict[str, Any] = {}
    for place in pkgutil.iter_modules(importlib.import_module(package).__path__):
        for kind in vars(importlib.import_module(f"{package}.{place.name}")).get(label, ()):
            if kind.name in found:
                raise ValueError(f"two classes of {package} are named {kind.name}")
            found[kind.name] = kind
    return found


def named(found: Mapping[str, Any], name: str, *, what: str) -> Any:
    """The class of that name; `what` says in the message what it would have been.

    Raises:
        BadInput: there is none.
    """
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(found)}"
        raise BadInput(f"there is no {what} {name!r}; {hint}")
    return found[name]
