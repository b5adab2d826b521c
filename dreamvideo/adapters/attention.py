"""Attention of diffusers, restated where it is not to be computed as a whole.

With its probabilities seen and changed on the way, as Prompt-to-Prompt does (Hertz et al. 2022),

    y = W_o change(softmax(Q K^T / sqrt(d))) V

where that is asked for: probabilities take much more room than attention that never holds them whole. And with keys and
values of a text that were computed before.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Change", "Control", "Kept", "attended", "recalled"]

Change = Callable[[Tensor], Tensor]
"""Probabilities (N, heads, queries, keys) -> those to use in their place, of the same shape."""

Control = Callable[[str, int], Change | None]
"""Asked at every attention of a transformer block, by its port and its number of queries: what becomes of its
probabilities? None: nothing, and they are not made."""

Kept = dict[nn.Module, tuple[Tensor, Tensor]]
"""Attention -> keys and values (N, heads, keys, d) of a text that stays the same."""


def attended(attention: Any, x: Tensor, text: Tensor | None, mask: Tensor | None, change: Change) -> Tensor:
    """What diffusers' `attention(x, text, mask)` of a transformer block says with other probabilities.

    x (N, queries, width), text (N, keys, D) or None for x itself -> (N, queries, width).
    """
    seen = x if text is None else text
    query, key, value = (
        attention.head_to_batch_dim(layer(tokens))
        for layer, tokens in ((attention.to_q, x), (attention.to_k, seen), (attention.to_v, seen))
    )
    mask = attention.prepare_attention_mask(mask, seen.shape[1], len(x))
    probabilities = change(attention.get_attention_scores(query, key, mask).unflatten(0, (-1, attention.heads)))
    return _out(attention, attention.batch_to_head_dim(probabilities.flatten(0, 1) @ value))


def recalled(attention: Any, x: Tensor, text: Tensor, kept: Kept) -> Tensor:
    """`attention(x, text)` of a transformer block, with the text's keys and values from `kept`, or kept there.

    x (N, queries, width), text (N, keys, D) -> (N, queries, width).
    """

    def heads(layer: nn.Module, tokens: Tensor) -> Tensor:
        return layer(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    if attention not in kept:
        kept[attention] = heads(attention.to_k, text), heads(attention.to_v, text)
    y = F.scaled_dot_product_attention(heads(attention.to_q, x), *kept[attention])
    return _out(attention, y.transpose(1, 2).flatten(2))


def _out(attention: Any, y: Tensor) -> Tensor:
    for layer in attention.to_out:
        y = layer(y)
    return y
