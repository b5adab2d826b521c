"""Methods: one file per paper, found by lying here."""

from dreamvideo.discovery import listed, named
from dreamvideo.methods.method import Method

__all__ = ["Method", "available", "find"]


def available() -> dict[str, type[Method]]:
    """Method name -> class, from the METHODS of every module of this package."""
    return listed(__name__, "METHODS")


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        BadInput: there is none.
    """
    return named(available(), name, what="method")
