"""Video-P2P (Liu et al. 2023): Prompt-to-Prompt on an image model that has learned the clip."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dreamvideo import media, recipe, train
from dreamvideo.adapters.file import ConceptFile
from dreamvideo.adapters.ports import Reach
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import read_concept
from dreamvideo.edits.edit import Edit, Edited, Task, Updates
from dreamvideo.edits.null_text import Inverted, inverted, tuned
from dreamvideo.edits.prompt_to_prompt import PromptToPrompt, align, weighted
from dreamvideo.errors import Unsupported
from dreamvideo.progress import Progress
from dreamvideo.sample import SampleConfig, denoise

__all__ = ["EDITS"]

_REACH: Reach = "first"

Part = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class VideoP2P(Edit):
    """An image model learns the clip, noise and empty texts lead back to it, and the prompt takes its attention.

    Tuned as Tune-A-Video, but with self-attention that looks at the first frame alone. The clip and its edit are
    denoised side by side from the clip's noise: the clip with its caption and its own empty texts, the edit with the
    prompt and the plain one (decoupled guidance). See `null_text` and `prompt_to_prompt` for the equations.
    """

    name: ClassVar[str] = "video-p2p"

    steps: Annotated[int, Field(ge=1)] = 500
    """Of learning the clip."""
    lr: float = 3e-5
    heads: int = 8
    """Of the attention over frames."""
    rematerialise: bool = True
    """Keep no activations inside blocks while something is learned: less memory, more time."""
    sampling_steps: Annotated[int, Field(ge=1)] = 50
    guidance: float = 7.5
    fast: bool = False
    """Without empty texts of the clip's own: in a fraction of the time, and farther from the clip."""
    null_updates: Annotated[int, Field(ge=1)] = 10
    """Of the empty text of each sampling step, at most."""
    null_lr: float = 1e-2
    """Of the first of them; it falls evenly to half of it."""
    cross_replace: Part = 0.2
    """Part of the sampling steps in which attention to the text is taken from the clip."""
    self_replace: Part = 0.5
    """Likewise of self-attention."""
    self_cells: int = 32
    """Longest side, in cells, of the maps of self-attention that are taken."""
    word_swap: bool = True
    """Words in the place of others take their attention; words that are only added always have their own."""
    word_weights: Mapping[str, float] = field(default_factory=dict)
    """Words of the prompt -> factors on the attention to them while it is taken from the clip."""
    mask_threshold: Part = 0.3
    """What the attention to the words that differ must have of its greatest value where the clip may change; 0 lets it
    change everywhere."""
    mask_words: tuple[str, str] | None = None
    """A word of the caption and one of the prompt to look for instead."""
    mask_from: Part = 0.2
    """Part of the sampling steps before the clip is held where it may not change."""
    mask_cells: int = 16
    """Longest side, in cells, of the maps of attention that are looked at."""

    def edited(self, base: VideoBase, task: Task, *, seed: int) -> Updates:
        if _REACH not in base.reaches:
            raise Unsupported(
                f"video-p2p needs an image model run on frames (such as emojiworld-image), not {base.name}"
            )
        count, _, height, width = task.frames.shape
        base.latent_shape(count, height, width)
        controller = self._controller(base, task)
        config = SampleConfig(steps=self.sampling_steps, guidance=self.guidance).filled(base.defaults)
        latents, _ = base.encode_video(2 * task.frames.to(base.device).transpose(0, 1)[None] - 1)
        with _room(task, base, self._learning(seed)) as room:
            learned = yield from self._learned(base, task, room, seed)
            with base.attached(*learned.sets.values()), base.reaching(_REACH), base.autocast():
                with torch.no_grad():
                    caption, prompt, empty = base.encode_text([task.caption, task.prompt, ""]).split(1)
                known = yield from self._inverted(base, latents, caption, empty, config, room)
                own = [empty] * self.sampling_steps if self.fast else known.empty
                after = yield from denoise(
                    base,
                    known.way[-1].repeat(2, 1, 1, 1, 1),
                    lambda step, x: torch.cat([own[step], empty, caption, prompt]),
                    config,
                    controller=controller,
                )
        again, result = ((base.decode(x[None])[0].transpose(0, 1) + 1) / 2 for x in after)
        error = (again - task.frames.to(again)).square().mean()
        return Edited(frames=result, measured={"clip_psnr": round(-10 * error.log10().item(), 2)})

    def _controller(self, base: VideoBase, task: Task) -> PromptToPrompt:
        tokenizer = base.parts.tokenizer
        alignment = align(tokenizer, task.caption, task.prompt, swap=self.word_swap)
        blend = alignment.differs
        if self.mask_words is not None:
            texts = zip((task.caption, task.prompt), self.mask_words, strict=True)
            blend = torch.stack([weighted(tokenizer, text, {word: 1.0}, other=0.0) for text, word in texts])
        return PromptToPrompt(
            taken=alignment.taken,
            weights=weighted(tokenizer, task.prompt, self.word_weights),
            blend=blend,
            frames=len(task.frames),
            cross_until=int(self.cross_replace * self.sampling_steps),
            self_until=int(self.self_replace * self.sampling_steps),
            self_cells=self.self_cells,
            blend_from=int(self.mask_from * self.sampling_steps),
            blend_cells=self.mask_cells,
            threshold=self.mask_threshold,
        )

    def _learning(self, seed: int) -> dict[str, Any]:
        """How the clip is learned, over the official recipe of Tune-A-Video."""
        method = {"steps": self.steps, "lr": self.lr, "heads": self.heads, "reach": _REACH}
        return {"method": method, "train": {"seed": seed, "rematerialise": self.rematerialise, "save_every": 50}}

    def _learned(self, base: VideoBase, task: Task, room: Path, seed: int) -> Generator[Progress, None, ConceptFile]:
        """The clip, learned now, gone on with, or kept from before."""
        count, _, height, width = task.frames.shape
        clip = room / "clip.webp"  # without loss
        if not clip.exists():
            frames = (task.frames * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            media.write_video(clip, frames, fps=base.defaults.fps)
        concept = read_concept(clip, kind="clip", caption=task.caption)
        sizes = {"frames": count, "height": height, "width": width, "fps": base.defaults.fps}
        how = recipe.resolve(
            "tune-a-video", base, concept, recipe="official", settings=[self._learning(seed), {"data": sizes}]
        )
        return (yield from train.updates(how, base, concept, room / "learned"))

    def _inverted(
        self, base: VideoBase, latents: Tensor, caption: Tensor, empty: Tensor, config: SampleConfig, room: Path
    ) -> Generator[Progress, None, Inverted]:
        """The clip's way to noise and, unless `fast`, its empty texts: found now, gone on with, or kept."""
        settings = [config.steps, config.guidance, self.null_updates, self.null_lr]
        file = room / f"inverted-{_digest(settings)}.safetensors"
        if file.exists():
            known = Inverted.load(file, base.device)
        else:
            known = yield from inverted(base, latents, caption, steps=config.steps)
            known.save(file)
        if not self.fast and len(known.empty) < config.steps:
            try:
                with base.learning(rematerialise=self.rematerialise):
                    yield from tuned(base, known, empty, caption, config, updates=self.null_updates, lr=self.null_lr)
            finally:
                known.save(file)
        return known


@contextmanager
def _room(task: Task, base: VideoBase, settings: Mapping[str, Any]) -> Iterator[Path]:
    """A folder of the clip, its caption and how it is learned, which stays where the task wants that."""
    if task.keep is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        about = [task.caption, *task.frames.shape, base.name, base.precision, base.fingerprint, settings]
        yield task.keep / f"video-p2p-{_digest(about, task.frames)}"


def _digest(settings: Any, *tensors: Tensor) -> str:
    parts = [json.dumps(settings).encode(), *(tensor.cpu().numpy().tobytes() for tensor in tensors)]
    return sha256(b"".join(parts)).hexdigest()[:16]


EDITS = (VideoP2P,)
