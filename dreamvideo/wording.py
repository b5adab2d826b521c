"""A prompt as it is said to the base, with the phrases of what was learned, and in plain words."""

import logging
import re
from collections.abc import Iterator, Sequence

from dreamvideo.adapters.file import ConceptFile
from dreamvideo.adapters.words import Word
from dreamvideo.errors import BadInput

__all__ = ["plain_words", "with_article", "worded"]

_log = logging.getLogger(__name__)


def worded(prompt: str, files: Sequence[ConceptFile]) -> str:
    """The prompt with the papers' `*` written as the one subject, and every subject's `<name>` as its phrase."""
    phrases = {name: phrase for file in files for name, phrase in _phrases(file)}
    prompt = _starless(prompt, list(phrases))
    for name, phrase in phrases.items():
        if name not in prompt and phrase not in prompt:
            _log.warning("the prompt does not name %s, which was learned as the subject's word", name)
        prompt = prompt if phrase in prompt else prompt.replace(name, phrase)
    return prompt


def plain_words(prompt: str, files: Sequence[ConceptFile]) -> str:
    """The prompt as anyone would say it: every subject is its class word, or else its name."""
    words = {pair: file.meta.word or pair[0].strip("<>") for file in files for pair in _phrases(file)}
    prompt = _starless(prompt, [name for name, _ in words])
    for (name, phrase), word in words.items():
        prompt = re.sub(
            rf"(?:\b([Aa])n? )?(?:{re.escape(phrase)}|{re.escape(name)})",
            lambda said, word=word: with_article(word, said[1]) if said[1] else word,
            prompt,
        )
    return prompt


def with_article(word: str, a: str = "a") -> str:
    """`a cat`, `an animal`."""
    return f"{a}n {word}" if word[0] in "aeiou" else f"{a} {word}"


def _starless(prompt: str, names: Sequence[str]) -> str:
    """The prompt with the one `<name>` for `*`."""
    if "*" not in prompt.split():
        return prompt
    if len(names) != 1:
        raise BadInput(f"prompt {prompt!r}: * stands for one subject, but {len(names)} are given; write <name>")
    return " ".join(names[0] if part == "*" else part for part in prompt.split())


def _phrases(file: ConceptFile) -> Iterator[tuple[str, str]]:
    """(`<name>`, what it means) of a subject; a concept that has neither a word nor a phrase has no name."""
    phrase = file.meta.sampling.phrase
    words = [adapters.kind.name for adapters in file.sets.values() if isinstance(adapters.kind, Word)]
    for name in words or [file.meta.name] * ("{word}" not in phrase):
        yield f"<{name}>", phrase.format_map({"word": f"<{name}>", "class": file.meta.word})
