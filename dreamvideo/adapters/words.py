"""Learned words: token vectors that take part in the embedded sequence before positions are added.

Textual inversion (Gal et al. 2022), DreamVideo's textual identity (paper, section 3.2).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dreamvideo.adapters.graft import AdapterSet, Kind, Site

__all__ = ["Word", "learned_word"]


@dataclass(frozen=True, kw_only=True)
class Word(Kind):
    """One learned word, written `<name>` in a prompt."""

    label: ClassVar[str] = "word"
    ports: ClassVar[frozenset[str]] = frozenset({"word"})

    name: str
    """Between the angle brackets."""
    vectors: int = 1
    """Token vectors for this word; they stand one after another in the prompt."""

    @property
    def serial(self) -> bool:
        return False

    def build(self, site: Site, generator: torch.Generator) -> nn.Module:
        return _Vectors(self.vectors, site.width)


class _Vectors(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(count, width))


def learned_word(name: str, vectors: Tensor, site: Site) -> AdapterSet:
    """A word that starts as `vectors` (n, width), usually the token vectors of its class."""
    word = AdapterSet(Word(name=name, vectors=len(vectors)), (site,))
    word.load_state_dict({f"{site.key}.vectors": vectors})
    return word
