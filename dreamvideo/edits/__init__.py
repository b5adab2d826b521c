"""Edits: one file per paper that edits a clip, found by lying here."""

from dreamvideo.discovery import listed, named
from dreamvideo.edits.edit import Edit

__all__ = ["Edit", "available", "find"]


def available() -> dict[str, type[Edit]]:
    """Edit name -> class, from the EDITS of every module of this package."""
    return listed(__name__, "EDITS")


def find(name: str) -> type[Edit]:
    """The edit of that name.

    Raises:
        BadInput: there is none.
    """
    return named(available(), name, what="edit")
