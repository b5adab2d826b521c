"""Prompt-to-Prompt (Hertz et al. 2022): a prompt's video takes the attention of its caption's, where both say the same.

In the first steps, M of the caption's video and M* of the prompt's, both denoised side by side from one start:

    text:            M*_j <- c_j M_A(j)   for each token j of the prompt with a counterpart A(j), and else c_j M*_j
    self-attention:  M*   <- M

c are weights of words. Where neither video attends to the words that differ, the prompt's is the caption's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo.adapters.attention import Change
from dreamvideo.errors import BadInput
from dreamvideo.sample import Controller

__all__ = ["Alignment", "PromptToPrompt", "align", "weighted"]


@dataclass(frozen=True)
class Alignment:
    """What the tokens of a prompt have to do with those of a caption; all over the tokenizer's full length."""

    taken: Tensor
    """(L prompt, L caption): a token's attention as a sum of the caption's; zeros where it has no counterpart."""
    differs: Tensor
    """(2, L) in {0, 1}, of the caption and of the prompt: tokens that the other has not."""


def align(tokenizer: Any, caption: str, prompt: str, *, swap: bool) -> Alignment:
    """Word by word, by the longest runs that both have.

    Args:
        swap: words that stand in the place of others take their attention, evenly where their tokens are not as many
            (Prompt-to-Prompt's replacement); otherwise they have their own, as words have that are only added
            (its refinement).

    Raises:
        BadInput: a text is longer than the tokenizer's full length.
    """
    length = tokenizer.model_max_length
    sources, targets = _words(tokenizer, caption), _words(tokenizer, prompt)
    taken, differs = torch.zeros(length, length), torch.zeros(2, length)
    steps = SequenceMatcher(None, [w.ids for w in sources], [w.ids for w in targets], autojunk=False).get_opcodes()
    for tag, *places in steps:
        ours, theirs = sources[places[0] : places[1]], targets[places[2] : places[3]]
        if tag != "equal":
            for row, words in enumerate((ours, theirs)):
                differs[row, [place for word in words for place in word.places]] = 1
        if tag == "equal" or (tag == "replace" and swap):
            # As many words for as many others: each for the one in its place.
            groups = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else [(_joined(ours), _joined(theirs))]
            for one, other in groups:
                even = len(one.places) == len(other.places)
                share = torch.eye(len(one.places)) if even else torch.ones(1, 1) / len(other.places)
                taken[torch.tensor(other.places)[:, None], torch.tensor(one.places)] = share
    taken[0, 0] = 1
    # The end and what fills up, each for the one as far behind the words.
    ends = [1 + sum(len(word.ids) for word in words) for words in (sources, targets)]
    behind = torch.arange(length - max(ends))
    taken[ends[1] + behind, ends[0] + behind] = 1
    return Alignment(taken, differs)


def weighted(tokenizer: Any, text: str, weights: Mapping[str, float], *, other: float = 1.0) -> Tensor:
    """(L,), the weight of every token of a text: of words by their name, `other` of the rest.

    Raises:
        BadInput: the text has no such word.
    """
    result = torch.full((tokenizer.model_max_length,), other)
    words = _words(tokenizer, text)
    for name, weight in weights.items():
        ids = tuple(tokenizer(name, add_special_tokens=False).input_ids)
        places = [place for word in words if word.ids == ids for place in word.places]
        if not places:
            raise BadInput(f"{text!r} has no word {name!r}")
        result[places] = weight
    return result


@dataclass(frozen=True)
class _Word:
    ids: tuple[int, ...]
    places: list[int]
    """Of its tokens in the text; 0 is the start token's."""


def _words(tokenizer: Any, text: str) -> list[_Word]:
    words, start = [], 1
    for part in text.split():
        ids = tuple(tokenizer(part, add_special_tokens=False).input_ids)
        words.append(_Word(ids, [*range(start, start + len(ids))]))
        start += len(ids)
    if start >= tokenizer.model_max_length:
        raise BadInput(f"{text!r} is too long: {tokenizer.model_max_length - 2} tokens at most")
    return words


def _joined(words: list[_Word]) -> _Word:
    return _Word((), [place for word in words for place in word.places])


@dataclass(kw_only=True)
class PromptToPrompt(Controller):
    """Acts on two videos side by side, the caption's first; the unconditional branches stay as they are."""

    taken: Tensor
    """(L prompt, L caption), of an `Alignment`."""
    weights: Tensor
    """(L,), of the prompt's tokens, where their attention is replaced."""
    blend: Tensor
    """(2, L) in {0, 1}: tokens of the caption and the prompt around which the videos may differ; all 0: everywhere."""
    frames: int
    cross_until: int
    """The first step whose attention to the text is left alone."""
    self_until: int
    """Likewise of self-attention."""
    self_cells: int
    """Longest side of the maps of self-attention that are replaced, in cells of a square map."""
    blend_from: int
    """The first step after which the videos are blended."""
    blend_cells: int
    """Longest side of the maps that are blended by, in cells of a square map."""
    threshold: float
    """What a map must have of its greatest value where the videos may differ."""
    _maps: dict[int, Tensor] = field(default_factory=dict, init=False)
    """Number of cells -> (2, F, cells): attention to `blend`, summed up so far."""

    def attention(self, step: int, port: str, queries: int) -> Change | None:
        if port == "attn1":
            return self._same if step < self.self_until and queries <= self.self_cells**2 else None
        replaced = step < self.cross_until
        seen = bool(self.blend.any()) and queries <= self.blend_cells**2

        def change(probabilities: Tensor) -> Tensor:
            result = self._taken(probabilities) if replaced else probabilities
            if seen:
                self._look(result)
            return result

        return change if replaced or seen else None

    def latents(self, step: int, x: Tensor) -> Tensor:
        if step < self.blend_from or not self._maps:
            return x
        return torch.where(self._mask(x.shape[-2:])[None], x, x[:1])

    def _apart(self, probabilities: Tensor) -> Tensor:
        """(N, ...) -> (branches, 2 videos, F, ...), the conditional branch last."""
        return probabilities.unflatten(0, (-1, 2, self.frames))

    def _same(self, probabilities: Tensor) -> Tensor:
        """Self-attention with that of the caption's video in both."""
        result = self._apart(probabilities).clone()
        result[-1, 1] = result[-1, 0]
        return result.flatten(0, 2)

    def _taken(self, probabilities: Tensor) -> Tensor:
        """Attention to the text with what the prompt's tokens take from the caption's."""
        result, taken = self._apart(probabilities).clone(), self.taken.to(probabilities)
        source, target = result[-1]
        mixed = torch.where(taken.any(dim=1), source @ taken.T, target)
        result[-1, 1] = self.weights.to(mixed) * mixed
        return result.flatten(0, 2)

    def _look(self, probabilities: Tensor) -> None:
        """Add up where the words are looked for, over heads, layers of one size and steps."""
        conditional = self._apart(probabilities)[-1].float().mean(dim=2)  # (2, F, cells, L)
        maps = torch.einsum("vfql,vl->vfq", conditional, self.blend.to(conditional))
        self._maps[maps.shape[-1]] = self._maps.get(maps.shape[-1], 0) + maps

    def _mask(self, size: torch.Size) -> Tensor:
        """(F, h, w): where one of the words is, by the finest of the maps."""
        cells = max(self._maps)
        shrunk = isqrt(size.numel() // cells)
        maps = self._maps[cells].unflatten(-1, (size[0] // shrunk, size[1] // shrunk))
        spread = F.max_pool2d(maps.flatten(0, 1)[:, None], 3, stride=1, padding=1)
        large = F.interpolate(spread, tuple(size)).unflatten(0, maps.shape[:2])[:, :, 0]
        greatest = large.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(large.dtype).tiny)
        return (large / greatest > self.threshold).any(dim=0)
