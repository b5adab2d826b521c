"""Where a word of the prompt acts: cross-attention maps over denoising time and frames.

    A_w(step, frame, place) = mean over layers and heads of  sum over the word's tokens of  softmax(Q K^T / sqrt(d))

of the prompt's own branch, in every spatial cross-attention, brought to the latents' size (Hertz et al. 2022, section
3.1; Tang et al. 2023, eq. 5). A value is the share of a place's attention that goes to the word, 0 to 1. Looking
changes a video by rounding alone.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamvideo.adapters.attention import Change
from dreamvideo.adapters.file import ConceptFile
from dreamvideo.adapters.words import Word
from dreamvideo.bases.base import VideoBase
from dreamvideo.bases.text import tokenize
from dreamvideo.errors import BadInput
from dreamvideo.files import whole
from dreamvideo.sample import Controller
from dreamvideo.sheets import Tile, sheet
from dreamvideo.video import Video
from dreamvideo.wording import worded

__all__ = ["Reader", "places", "write"]

_PARTS, _SHOWN = 4, 8
"""Of denoising time, and frames, on the sheet."""
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float32)


class Reader(Controller):
    """Reads the maps of some tokens, and changes nothing."""

    def __init__(self, tokens: Sequence[int], *, length: int, shape: tuple[int, int, int]) -> None:
        """`tokens` are places in a prompt of `length` tokens; `shape` is (F, h, w) of the latents."""
        self.tokens, self.length, self.shape = list(tokens), length, shape
        self._found: dict[int, list[Tensor]] = {}

    def attention(self, step: int, port: str, queries: int) -> Change | None:
        frames, height, width = self.shape
        # Every level of the denoiser halves both sides.
        half = next((n for n in range(8) if (height >> n) * (width >> n) == queries), None)
        if port != "attn2" or half is None:
            return None

        def read(probabilities: Tensor) -> Tensor:
            # Over time this port looks at frames, not at tokens.
            if probabilities.shape[-1] == self.length:
                # The prompt's own branch is the last.
                maps = probabilities[-frames:, :, :, self.tokens].float().sum(dim=-1).mean(dim=1)
                maps = maps.unflatten(1, (1, height >> half, width >> half))
                full = F.interpolate(maps, size=(height, width), mode="bilinear")[:, 0]
                self._found.setdefault(step, []).append(full.cpu())
            return probabilities

        return read

    def latents(self, step: int, x: Tensor) -> Tensor:
        return x

    @property
    def maps(self) -> np.ndarray:
        """float32 (steps, F, h, w)."""
        return np.stack([torch.stack(layers).mean(dim=0).numpy() for _, layers in sorted(self._found.items())])


def places(base: VideoBase, prompt: str, word: str, concepts: Sequence[ConceptFile]) -> list[int]:
    """Where the tokens of `word`, a learned `<name>` or any words of the prompt, stand in the prompt, every time.

    Raises:
        BadInput: it is not in the prompt.
    """
    kinds = [adapters.kind for concept in concepts for adapters in concept.sets.values()]
    words = {kind.name: kind.vectors for kind in kinds if isinstance(kind, Word)}
    tokenizer = base.parts.tokenizer
    asked, sought = (
        tokenize(tokenizer, [worded(text, concepts)], words, first=len(tokenizer))[0].tolist()
        for text in (prompt, word)
    )
    sought = sought[1 : sought.index(tokenizer.eos_token_id)]
    starts = [at for at in range(len(asked)) if sought and asked[at : at + len(sought)] == sought]
    if not starts:
        raise BadInput(f"--word {word}: not in the prompt {prompt!r}")
    return [start + offset for start in starts for offset in range(len(sought))]


def write(folder: Path, video: Video, maps: np.ndarray, *, word: str) -> list[Path]:
    """Write attention.npz, the maps; attention.csv, of every step and frame the mean, the largest value and the middle;
    and attention.png, the means over parts of denoising time, laid over the video's frames.

    Args:
        maps: (steps, F, h, w).
    """
    with whole(folder / "attention.npz") as draft:
        np.savez_compressed(draft, maps=maps, frames=video.frames, word=word)
    with whole(folder / "attention.csv") as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "frame", "mean", "largest", "x", "y"], lineterminator="\n")
        writer.writeheader()
        for step, own in enumerate(maps):
            writer.writerows({"step": step + 1, "frame": number + 1, **_told(one)} for number, one in enumerate(own))
    return [folder / "attention.npz", folder / "attention.csv", _sheet(folder / "attention.png", video, maps, word)]


def _told(one: np.ndarray) -> Mapping[str, float]:
    """Of a map (h, w); the middle, weighted by attention, as shares of the sides from the left and from the top."""
    total = max(float(one.sum()), 1e-12)
    y, x = ((np.arange(size) + 0.5) / size for size in one.shape)
    middle = {"x": float(one.sum(axis=0) @ x) / total, "y": float(one.sum(axis=1) @ y) / total}
    return {"mean": float(one.mean()), "largest": float(one.max()), **middle}


def _sheet(path: Path, video: Video, maps: np.ndarray, word: str) -> Path:
    frames = np.linspace(0, len(video.frames) - 1, min(_SHOWN, len(video.frames))).round().astype(int)
    parts = np.array_split(np.arange(len(maps)), min(_PARTS, len(maps)))
    means = [maps[part].mean(axis=0) for part in parts]
    top = max(float(mean.max()) for mean in means) or 1.0
    rows = ["video", *(f"steps {part[0] + 1} to {part[-1] + 1}" for part in parts)]
    tiles = [[Tile(video.frames[[at]]) for at in frames]]
    tiles += [[Tile(_overlaid(video.frames[at], mean[at] / top)[None]) for at in frames] for mean in means]
    columns = [f"frame {at + 1}" for at in frames]
    title = f"{video.made['prompt']}: attention to {word}, brightest {top:.2f}"
    return sheet(path, tiles, title=title, rows=rows, columns=columns)


def _overlaid(frame: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map in [0, 1], (h, w), in colours over a grey frame, uint8 (H, W, 3)."""
    large = F.interpolate(torch.from_numpy(heat)[None, None], size=frame.shape[:2], mode="bilinear")[0, 0].numpy()
    steps = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(large, steps, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    return (0.35 * frame.mean(axis=-1, keepdims=True) + 0.65 * colours).round().clip(0, 255).astype(np.uint8)
