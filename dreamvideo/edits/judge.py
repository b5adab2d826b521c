"""What CLIP holds against an edit layer: Text2LIVE's losses (Bar-Tal et al. 2022, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamvideo.edits.clip import Clip, direction, distance, structure, views

__all__ = ["Judge", "over", "uniform"]

_GREEN = (0, 177 / 255, 64 / 255)


@dataclass(frozen=True)
class Judge:
    """CLIP, and what it is to see."""

    clip: Clip
    wanted: Tensor
    """(M, D), unit vectors of the prompt in every template."""
    screen: Tensor
    """(M, D), of what the edit alone shows."""
    way: Tensor
    """(D,), from the caption to the prompt."""
    views: int
    """Of every picture."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        clip: Clip,
        *,
        caption: str,
        prompt: str,
        screen: str,
        templates: Sequence[str],
        screens: Sequence[str],
        views: int,
    ) -> "Judge":
        """In the templates {} stands for the text; `screens` are those of the edit alone."""

        def told(forms: Sequence[str], text: str) -> Tensor:
            return clip.texts([form.replace("{}", text) for form in forms])

        wanted = told(templates, prompt)
        return cls(clip, wanted, told(screens, screen), (wanted - told(templates, caption)).mean(dim=0), views)

    def __call__(self, edits: Tensor, frames: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of composition, green screen and structure of edits (N, 4, H, W) over frames (N, 3, H, W)."""
        look = views(self.views, self.clip.side, draws)
        result, green = over(edits, frames), torch.tensor(_GREEN).to(frames).view(1, 3, 1, 1)
        after, alone = self.clip.pictures(look(torch.cat([result, over(edits, green)]))).chunk(2)
        with torch.no_grad():
            before, tokens = self.clip.pictures(look(frames)), self.clip.tokens(frames)
        comp = distance(after, _some(self.wanted, draws)) + direction(after, before, self.way)
        return comp, distance(alone, _some(self.screen, draws)), structure(self.clip.tokens(result), tokens)


def over(edits: Tensor, below: Tensor) -> Tensor:
    """Edit layers (N, 4, H, W), colours and opacity, over pictures (N or 1, 3, H or 1, W or 1)."""
    colours = edits[:, :3]
    return torch.lerp(below.expand_as(colours), colours, edits[:, 3:])


def uniform(draws: torch.Generator) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), generator=draws))


def _some(texts: Tensor, draws: torch.Generator) -> Tensor:
    """A random number of the rows, at least one, drawn at random."""
    order = torch.randperm(len(texts), generator=draws)
    return texts[order[: 1 + int(uniform(draws) * len(texts))]]
