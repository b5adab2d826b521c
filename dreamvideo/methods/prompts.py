"""What a concept's examples are called while they are learned."""

from collections.abc import Mapping

from dreamvideo.concept import Concept, Example
from dreamvideo.errors import BadConfig, BadInput

__all__ = ["IDENTIFIER", "class_word", "clip_prompt", "filled", "subject_prompt"]

IDENTIFIER = "sks"
"""A rare word of CLIP's vocabulary that stands for a subject without being learned itself (DreamBooth)."""


def subject_prompt(concept: Concept, example: Example, template: str, *, phrase: str = "{word}") -> str:
    """The picture's own caption, `*` in it written as the subject, or else the template.

    Args:
        template: `{subject}` is the phrase, `{word}` the learned word `<name>`, `{class}` the class word.
        phrase: how the subject is named, with `{word}` or `{class}`.

    Raises:
        BadInput: the caption does not name what is to be learned from it, or a class word is needed and missing.
        BadConfig: something else stands in braces.
    """
    word = f"<{concept.name}>"
    values = {"word": word, "class": class_word(concept) if "{class}" in template + phrase else ""}
    subject = filled(phrase, values)
    if example.caption is None:
        return filled(template, {**values, "subject": subject})
    caption = " ".join(subject if part in ("*", word) else part for part in example.caption.split())
    if ("{word}" in template or "{subject}" in template) and subject not in caption:
        raise BadInput(f"{example.path}: its caption {caption!r} must say {subject} (or *) where the subject stands")
    return caption


def clip_prompt(concept: Concept, example: Example) -> str:
    """The clip's caption.

    Raises:
        BadInput: neither the clip nor the concept has one.
    """
    caption = example.caption or concept.caption
    if caption is None:
        raise BadInput(f"{example.path}: no caption; say what happens with --caption, or in {example.path.stem}.txt")
    return caption


def class_word(concept: Concept) -> str:
    """The subject's class word.

    Raises:
        BadInput: the concept has none.
    """
    if not concept.word:
        raise BadInput(f"subject {concept.name} needs its class word, for instance --word dog")
    return concept.word


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with what stands in braces replaced by the values of that name.

    Raises:
        BadConfig: another name stands in braces, or something that is no name.
    """
    try:
        return text.format_map(values)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise BadConfig(f"{text!r} cannot be filled in: {known} may stand in it") from error
