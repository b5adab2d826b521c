"""Prompts -> token ids, with learned words spliced in."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dreamvideo.errors import BadInput

__all__ = ["batched", "tokenize"]

# Spaces within only: "1 < 2 and 3 > 2" names no word.
_WORD = re.compile(r"<([^<>\s](?:[^<>]*[^<>\s])?)>")


def tokenize(tokenizer: Any, prompts: Sequence[str], words: Mapping[str, int], *, first: int) -> Tensor:
    """Token ids (B, L), L the tokenizer's full length, padded, cut at the end where a prompt is too long.

    `words` maps the names of learned words to their number of vectors; their ids start at `first` and follow each
    other in the mapping's order.

    Raises:
        BadInput: a prompt names a word that was not learned.
    """
    starts, start = {}, first
    for name, count in words.items():
        starts[name] = range(start, start + count)
        start += count
    rows = []
    for prompt in prompts:
        ids: list[int] = []
        # re.split with one group alternates: text, name, text, name, ..., text.
        for place, part in enumerate(_WORD.split(prompt)):
            if place % 2 == 0:
                ids += tokenizer(part, add_special_tokens=False).input_ids
            elif part in starts:
                ids += starts[part]
            else:
                known = ", ".join(f"<{name}>" for name in words) or "none"
                raise BadInput(f"prompt {prompt!r}: <{part}> is not among the learned words ({known})")
        length = tokenizer.model_max_length
        ids = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
        rows.append(ids + [tokenizer.pad_token_id] * (length - len(ids)))
    return torch.tensor(rows)


def batched(states: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
    """States (L, D) by prompt -> those of `prompts` (B, L, D). Where they all say the same it is one row in memory, of
    which attention makes keys and values once."""
    if len({*prompts}) == 1:
        return states[prompts[0]].expand(len(prompts), -1, -1)
    return torch.stack([states[prompt] for prompt in prompts])
