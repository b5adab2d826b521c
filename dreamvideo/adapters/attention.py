"""Attention whose probabilities are seen and changed on the way, as Prompt-to-Prompt does (Hertz et al. 2022).

    y = W_o change(softmax(Q K^T / sqrt(d))) V

Only what is asked for is computed so: probabilities take much more room than attention that never holds them whole.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Change", "Control", "attended"]

Change = Callable[[Tensor], Tensor]
"""Probabilities (N, heads, queries, keys) -> those to use in their place, of the same shape."""

Control = Callable[[str, int], Change | None]
"""Asked at every attention of a transformer block, by its port and its number of queries: what becomes of its
probabilities? None: nothing, and they are not made."""


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
    y = attention.batch_to_head_dim(probabilities.flatten(0, 1) @ value)
    for layer in attention.to_out:
        y = layer(y)
    return y
