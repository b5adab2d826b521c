"""What comes with the package: bases, example concepts, and the card that a base's folder may hold.

A card, `card.toml` beside `model_index.json`, says what no file of diffusers' layout has room for: a `summary`, a
`licence`, under `[defaults]` how the base wants to be sampled, and under `[encoders]` by what its videos are measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dreamvideo import config

__all__ = ["DEFAULT_BASE", "EXAMPLES", "Card", "bundled", "card"]

DEFAULT_BASE = "emojiworld"

EXAMPLES = Path(__file__).parent / "examples"
"""`subjects/NAME` and `motions/NAME` to customise a base with, and `truth.json`, where everything is in every frame."""

_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Card:
    """What a base says of itself."""

    summary: str = ""
    licence: str | None = None
    defaults: Mapping[str, int | float] = field(default_factory=dict)
    """Fields of `bases.base.Defaults`."""
    encoders: Mapping[str, str] = field(default_factory=dict)
    """`clip`, `dino` -> folder, seen from the base's."""


def bundled() -> dict[str, Path]:
    """Name -> folder of every bundled base."""
    return {file.parent.parent.name: file.parent.parent for file in sorted(_FOLDER.glob("*/unet/config.json"))}


def card(folder: str | Path) -> Card:
    """The card in a base's folder; an empty one where there is none.

    Raises:
        BadConfig: it is not TOML, or says what a card cannot say.
    """
    file = Path(folder) / "card.toml"
    return config.build(Card, config.read_toml(file), where=str(file)) if file.is_file() else Card()
