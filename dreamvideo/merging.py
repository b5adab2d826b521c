"""Keys and values of several concepts as one set, in closed form (Custom Diffusion, Kumari et al. 2023, section 3.2).

    min over W' of || W' C^T - W C^T ||_F   so that   W' K^T = V^T

C holds the text states of prompts on which nothing should change, K the states of every concept's phrase, V what each
concept's own weight makes of its states. With D = K (C^T C)^-1 the solution is

    W' = W + (V^T - W K^T) (D K^T)^-1 D
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dreamvideo.adapters.file import ConceptFile
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.kv import KeyValue
from dreamvideo.adapters.words import Word
from dreamvideo.bases.base import VideoBase
from dreamvideo.errors import BadInput

__all__ = ["merged"]


@torch.no_grad()
def merged(base: VideoBase, concepts: Sequence[ConceptFile], captions: Sequence[str]) -> ConceptFile:
    """Concepts that `custom-diffusion` learned apart, as one concept with all their words.

    In its prompts every word is written with its class word, as it was learned: `<dog> dog`.

    Args:
        captions: prompts on which the base should stay as it is; the official code takes about 200. Their states must
            span those of the phrases.

    Raises:
        BadInput: fewer than two concepts, one of another method, or captions that span too little.
    """
    subjects, words = [_only(file, KeyValue) for file in concepts], [_only(file, Word) for file in concepts]
    if len(concepts) < 2:
        raise BadInput("merging takes two concepts or more")
    with base.attached(*words):
        others = base.encode_text(captions).flatten(0, 1).double()
        # The first state is the start token's, equal for all concepts; what follows the phrase says nothing of it.
        states = [base.encode_text([_phrase(file)])[0, 1 : 1 + _length(base, file)].double() for file in concepts]
    gram, keys = others.T @ others, torch.cat(states)
    # States after a layer norm may span one dimension less than their width: there the least of all solutions serves.
    directions = keys @ torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    if (directions @ gram - keys).norm() > 1e-3 * keys.norm():
        raise BadInput(f"{len(captions)} captions span too little: merging needs more of them, and more different ones")
    deltas = {}
    for site in subjects[0].sites:
        name = f"{site.key}.delta"
        learned = [subject.state_dict()[name].to(keys) for subject in subjects]
        change = torch.cat([key @ delta.T for key, delta in zip(states, learned, strict=True)]).T  # V^T - W K^T
        # Phrases may share states; the pseudo-inverse meets what they agree on and the mean of what they do not.
        deltas[name] = (change @ torch.linalg.pinv(directions @ keys.T) @ directions).float()
    together = AdapterSet(subjects[0].kind, subjects[0].sites)
    together.load_state_dict(deltas)
    meta = concepts[0].meta
    meta = replace(
        meta,
        name="-".join(file.meta.name for file in concepts),
        word=None,
        sampling=replace(meta.sampling, phrase="{word}"),
    )
    return ConceptFile(meta, {"subject": together.requires_grad_(False), **_named(concepts, words)})


def _only(file: ConceptFile, kind: type) -> AdapterSet:
    found = [adapters for adapters in file.sets.values() if isinstance(adapters.kind, kind)]
    if len(found) != 1:
        raise BadInput(f"{file.path or file.meta.name}: merging takes what custom-diffusion learned")
    return found[0]


def _named(concepts: Sequence[ConceptFile], words: Sequence[AdapterSet]) -> dict[str, AdapterSet]:
    return {f"word-{file.meta.name}": word for file, word in zip(concepts, words, strict=True)}


def _phrase(file: ConceptFile) -> str:
    return file.meta.sampling.phrase.format_map({"word": f"<{file.meta.name}>", "class": file.meta.word})


def _length(base: VideoBase, file: ConceptFile) -> int:
    """Tokens of the phrase."""
    phrase, word = file.meta.sampling.phrase, _only(file, Word)
    rest = phrase.format_map({"word": "", "class": file.meta.word})
    ids = base.parts.tokenizer(rest, add_special_tokens=False).input_ids
    return len(ids) + phrase.count("{word}") * word.kind.vectors  # type: ignore[attr-defined]
