"""What a paper must supply."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.adapters.words import learned_word
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch, ClassImages
from dreamvideo.diffusion import Draw
from dreamvideo.methods.prompts import class_word, filled
from dreamvideo.views import View

__all__ = ["Method", "Stage", "Want", "class_images", "denoising", "initial_word", "with_prior"]

Want = Literal["mask", "appearance"]
Error = Callable[[Tensor], Tensor]
"""What a difference costs, element by element; 0 costs 0, so that a mask can leave elements out."""


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
    aside: AbstractSet[str] = frozenset()
    """Names in `learn` or `hold` that only help to learn the rest and are left out of the concept's file."""
    views: Sequence[View] = (View(),)
    """How examples are shown and said; each step draws one."""

    @contextmanager
    def unaided(self) -> Iterator[None]:
        """Inside, what is left aside takes no part: what is sampled for a look is what the file will give."""
        with ExitStack() as stack:
            for name, adapters in {**self.hold, **self.learn}.items():
                if name in self.aside:
                    stack.enter_context(adapters.scaled(0.0))
            yield


class Method(ABC):
    """A paper's way to learn a concept: a frozen keyword-only dataclass whose fields are its settings.

    Questions: `stages`: what is learned, in which order, for how long? `prompt`: with which words? `terms`: what is
    the loss? `sampling`: how does the result want to be sampled? And, where the default of none is not the answer,
    `class_images`: which pictures of the base's own keep its idea of the class?
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

    def class_images(self, concept: Concept) -> ClassImages | None:
        """Pictures that the frozen base makes before anything is learned; batches hold some as `prior`."""
        return None


def denoising(
    base: VideoBase,
    batch: Batch,
    draw: Draw,
    *,
    offset: float,
    text: Tensor | None = None,
    by_area: bool = False,
    error: Error = torch.square,
) -> Tensor:
    """The masked denoising objective, eq. 1 of DreamVideo with the official code's mask and offset noise:

        mean || m eps_theta(x_t, t, text) - m eps ||^2

    over all elements, masked-out ones included: a small subject has a small loss. `text` (B, L, D) stands in for
    the batch's own. `by_area` takes each sample's mean over its mask alone (Custom Diffusion's code). `error` stands
    in for the square.
    """
    x_t, t, target = draw.noised(batch.latents, offset=offset)
    difference = base.predict(x_t, t, batch.text if text is None else text).float() - target
    if batch.mask is None:
        return error(difference).mean()
    errors = error(batch.mask * difference)
    if not by_area:
        return errors.mean()
    area = batch.mask.expand_as(errors).flatten(1).sum(1)
    return (errors.flatten(1).sum(1) / area.clamp(min=1)).mean()


def with_prior(
    base: VideoBase,
    batch: Batch,
    draw: Draw,
    *,
    offset: float,
    weight: float,
    by_area: bool = False,
    error: Error = torch.square,
) -> Iterator[tuple[str, Tensor]]:
    """DreamBooth's objective (Ruiz et al. 2023, eq. 2): the subject's loss, and `weight` times the loss of the class
    images where the batch has some."""
    yield "denoise", denoising(base, batch, draw, offset=offset, by_area=by_area, error=error)
    if batch.prior is not None:
        yield "prior", weight * denoising(base, batch.prior, draw, offset=offset, error=error)


def class_images(concept: Concept, template: str, count: int, *, bypass_time: bool) -> ClassImages | None:
    """`count` pictures of the class, prompted by `template` with `{class}`, made with the layers that mix frames or
    without them; none where the count is 0.

    Raises:
        BadInput: the concept has no class word.
    """
    if not count:
        return None
    return ClassImages(filled(template, {"class": class_word(concept)}), count, bypass_time)


def initial_word(base: VideoBase, concept: Concept, *, vectors: int, start: str | None = None) -> AdapterSet:
    """A learned word `<name>` that starts as `start`, its class word by default: the mean of its tokens, once for
    every vector.

    Raises:
        BadInput: the concept has no class word.
    """
    (site,) = base.sites("text", ("word",))
    mean = base.token_vectors(start or class_word(concept)).mean(dim=0, keepdim=True)
    return learned_word(concept.name, mean.repeat(vectors, 1), site)
