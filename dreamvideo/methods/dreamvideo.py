"""DreamVideo (Wei et al., CVPR 2024): subject and motion, learned apart, composed when sampling.

Defaults are the paper's; where the paper is silent they are the official code's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from dreamvideo.adapters.bottleneck import Bottleneck, Form, Placement
from dreamvideo.adapters.file import Sampling
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept, Example
from dreamvideo.data import Batch
from dreamvideo.diffusion import Draw
from dreamvideo.errors import MissingWeights
from dreamvideo.methods.method import Method, Stage, Want, denoising, initial_word
from dreamvideo.methods.prompts import clip_prompt, subject_prompt

__all__ = ["METHODS"]


@dataclass(frozen=True, kw_only=True)
class DreamVideoSubject(Method):
    """Subject learning: first the textual identity, a word, then the identity adapter.

    Paper, section 3.2. Both minimise || m eps - m eps_theta(x_t, t, c("a S*")) ||^2 on single frames; the adapter is

        h' = h + gelu(h W_down) W_up

    beside the cross-attention of every spatial transformer (eq. 2).
    """

    name: ClassVar[str] = "dreamvideo-subject"
    learns: ClassVar = "image"

    vectors: int = 1
    """Token vectors of the learned word."""
    word_steps: int = 3000
    """0 learns no word; then `phrase` and `template` must do without {word} (ablation of Tab. 5)."""
    word_lr: float = 1e-4
    steps: int = 800
    lr: float = 1e-5
    hidden: int | None = None
    """Width of the bottleneck; half the stream's width when unset."""
    placement: Placement = "parallel"
    form: Form = "bottleneck"
    phrase: str = "{word}"
    """How a prompt names the subject."""
    template: str = "a {word}"
    """The prompt; {subject} is the phrase, {word} the learned word, {class} its class word."""
    mask: bool = True
    """Leave the background out of the loss where masks exist."""
    noise_offset: float = 0.1
    bypass_time: bool = False
    """Skip the layers that mix frames; the official code runs them on one frame."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage, ...]:
        wants: set[Want] = {"mask"} if self.mask else set()
        kind = Bottleneck(hidden=self.hidden, placement=self.placement, form=self.form)
        identity = {"identity": AdapterSet(kind, base.sites("space", ("attn2",)), seed=seed)}
        if self.word_steps == 0:
            return (Stage(name="identity", learn=identity, steps=self.steps, lr=self.lr, wants=wants),)
        word = {"word": initial_word(base, concept, vectors=self.vectors)}
        return (
            Stage(name="word", learn=word, steps=self.word_steps, lr=self.word_lr, live_text=True, wants=wants),
            Stage(name="identity", learn=identity, hold=word, steps=self.steps, lr=self.lr, wants=wants),
        )

    def prompt(self, concept: Concept, example: Example) -> str:
        return subject_prompt(concept, example, self.template, phrase=self.phrase)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        with base.given(bypass_time=self.bypass_time):
            yield "denoise", denoising(base, batch, draw, offset=self.noise_offset)

    def sampling(self) -> Sampling:
        return Sampling(noise_offset=self.noise_offset, phrase=self.phrase)


@dataclass(frozen=True, kw_only=True)
class DreamVideoMotion(Method):
    """Motion learning: the motion adapter, with appearance guidance.

    Paper, section 3.3, eq. 3-4:

        h' = h + gelu((h + e W_cond) W_down) W_up

    on all three branches of every temporal transformer, e the image vector of one random frame, so that the
    bottleneck need not explain what things look like.
    """

    name: ClassVar[str] = "dreamvideo-motion"
    learns: ClassVar = "clip"

    steps: int = 1000
    lr: float = 1e-5
    hidden: int | None = None
    """Width of the bottleneck; half the stream's width when unset."""
    placement: Placement = "parallel"
    ff_placement: Placement | None = None
    """Of the adapters on the feed-forward branches; as `placement`, then of those on the attentions, when unset
    (Tab. S6)."""
    form: Form = "bottleneck"
    ports: tuple[Literal["attn1", "attn2", "ff"], ...] = ("attn1", "attn2", "ff")
    condition: bool = True
    """Appearance guidance; without it the adapter has no condition layer (ablation of Tab. 5)."""
    drop_text: float = 0.5
    """Chance, per sample, that the caption is the empty string."""
    drop_appearance: float = 0.5
    """Chance, per sample, that e is the zero vector."""
    noise_offset: float = 0.1
    appearance_strength: tuple[float, float] | None = None
    """Of e in sampling, for the conditional and the unconditional branch; unset: (1, 1), or (1, 0) where no e was ever
    dropped."""

    def stages(self, base: VideoBase, concept: Concept, *, seed: int) -> tuple[Stage]:
        if self.condition and base.image_width is None:
            raise MissingWeights(
                f"base {base.name} has no image encoder for appearance guidance: name one with --image-encoder"
                f"{f' {base.image_encoder_id}' if base.image_encoder_id else ''}, "
                "or learn without it: --set method.condition=false"
            )
        width = base.image_width if self.condition else None
        kind = Bottleneck(hidden=self.hidden, condition=width, form=self.form)
        ports = {port: self.ff_placement or self.placement if port == "ff" else self.placement for port in self.ports}
        placements = tuple(dict.fromkeys(ports.values()))
        motion = {
            "motion" if len(placements) == 1 else f"motion-{placement}": AdapterSet(
                replace(kind, placement=placement),
                base.sites("time", tuple(port for port, own in ports.items() if own == placement)),
                seed=seed + number,
            )
            for number, placement in enumerate(placements)
        }
        wants: set[Want] = {"mask", "appearance"} if self.condition else {"mask"}
        return (Stage(name="motion", learn=motion, steps=self.steps, lr=self.lr, wants=wants),)

    def prompt(self, concept: Concept, example: Example) -> str:
        return clip_prompt(concept, example)

    def terms(
        self, base: VideoBase, sets: Mapping[str, AdapterSet], batch: Batch, draw: Draw
    ) -> Iterator[tuple[str, Tensor]]:
        text = draw.swap(batch.text, batch.empty_text, self.drop_text)
        e = None if batch.appearance is None else draw.drop(draw.pick(batch.appearance), self.drop_appearance)
        with base.given(appearance=e):
            yield "denoise", denoising(base, batch, draw, offset=self.noise_offset, text=text)

    def sampling(self) -> Sampling:
        # A zero vector still adds the condition layer's bias. Where training never saw it, the unconditional branch
        # must not either (official examples: 1/0 without appearance dropout, 1/1 with it).
        strength = self.appearance_strength or (1.0, 1.0 if self.drop_appearance else 0.0)
        return Sampling(noise_offset=self.noise_offset, appearance=strength)


METHODS = (DreamVideoSubject, DreamVideoMotion)
