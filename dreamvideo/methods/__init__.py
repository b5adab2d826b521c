"""Methods: one file per paper, found by lying here."""

import difflib
import importlib
import pkgutil

from dreamvideo.errors import BadInput
from dreamvideo.methods.method import Method

__all__ = ["Method", "available", "find"]


def available() -> dict[str, type[Method]]:
    """Method name -> class, from the METHODS of every module of this package."""
    found: dict[str, type[Method]] = {}
    for place in pkgutil.iter_modules(__path__):
        for method in vars(importlib.import_module(f"{__name__}.{place.name}")).get("METHODS", ()):
            if method.name in found:
                raise ValueError(f"two methods are named {method.name}")
            found[method.name] = method
    return found


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        BadInput: there is none.
    """
    methods = available()
    if name not in methods:
        near = difflib.get_close_matches(name, methods, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(methods)}"
        raise BadInput(f"there is no method {name!r}; {hint}")
    return methods[name]
