"""What a paper must supply."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.words import learned_word
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch
from dreamvideo.diffusion import Draw
from dreamvideo.errors import BadInput

__all__ = ["Method", "Stage", "Want", "denoising", "initial_word", "subject_prompt"]

Want = Literal["mask", "appearance"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of learning."""

    name: str
    learn: Mapping[str, AdapterSet]
    """What is learned, by its name in the concept's file."""
    hold: Mapping[str, AdapterSet] = field(default_factory=dict)
    """What was learned before and takes part, frozen."""
    steps: int
    lr: float
    live_text: bool = False
    """Text is encoded in every step, with gradient, because a word is being learned."""
    wants: AbstractSet[Want] = frozenset()
    """What a batch holds beside latents and text; only that is computed."""


class Method(ABC):
    """A paper's way to learn a concept: a frozen keyword-only dataclass whose fields are its settings.

    Questions: `stages`: what is learned, in which order, for how long? `prompt`: with which words? `terms`: what is
    the loss? `sampling`: how does the result want to be sampled?
    """

    name: ClassVar[str]
    learns: ClassVar[Literal["image", "clip"]]
    """What its concepts are made of: images make a subject, clips a motion."""

    @property
    def role(self) -> Literal["subject", "motion"]:
        return "subject" if self.learns == "image" else "motion"

    @abstractmethod
    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> Sequence[Stage]:
        """The stages, with fresh adapter sets made from `seed`."""

    @abstractmethod
    def prompt(self, concept: Concept, example: Example) -> str:
        """The prompt of one example."""

    @abstractmethod
    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        """The loss of one batch, term by term.

        Each term is differentiated before the next is asked for, while the generator waits inside its
        `with base.given(...)`: the backward pass sees what the forward pass saw.
        """

    @abstractmethod
    def sampling(self) -> Sampling:
        """How the learned concept wants to be sampled."""


def denoising(base: VideoBase, batch: Batch, draw: Draw, *, offset: float, text: Tensor | None = None) -> Tensor:
    """The masked denoising objective, eq. 1 of DreamVideo with the official code's mask and offset noise:

        mean || m eps_theta(x_t, t, text) - m eps ||^2

    over all elements, masked-out ones included: a small subject has a small loss. `text` (B, L, D) stands in for
    the batch's own.
    """
    x_t, t, target = draw.noised(batch.latents, offset=offset)
    difference = base.predict(x_t, t, batch.text if text is None else text).float() - target
    return (difference if batch.mask is None else batch.mask * difference).square().mean()


def initial_word(base: VideoBase, concept: Concept, *, vectors: int) -> AdapterSet:
    """A learned word `<name>` that starts as its class word: the mean of its tokens, once for every vector.

    Raises:
        BadInput: the concept has no class word.
    """
    if not concept.word:
        raise BadInput(f"subject {concept.name} needs its class word, for instance --word dog")
    (site,) = base.sites("text", ("word",))
    start = base.token_vectors(concept.word).mean(dim=0, keepdim=True)
    return learned_word(concept.name, start.repeat(vectors, 1), site)


def subject_prompt(concept: Concept, example: Example, template: str) -> str:
    """The picture's own caption, `*` in it written as the learned word, or else the template.

    `{word}` in the template is the learned word `<name>`, `{class}` the class word.

    Raises:
        BadInput: the caption does not name the word that is to be learned from it.
    """
    word = f"<{concept.name}>"
    if example.caption is None:
        return template.format_map({"word": word, "class": concept.word})
    caption = " ".join(word if part == "*" else part for part in example.caption.split())
    if "{word}" in template and word not in caption:
        raise BadInput(f"{example.path}: its caption {caption!r} must say {word} (or *) where the subject stands")
    return caption
