"""CLIP, and an image encoder in DINO's role, both learned by contrast (van den Oord et al. 2018, InfoNCE).

Renderings that show the same are no counter-examples: the target of a row is even over all that match it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from models import make_clip, make_dino, make_tokenizer
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from world import MOTIONS

from dreamvideo.bases.text import tokenize
from stages.stage import Setup, Stage, mixed

__all__ = ["CLIP", "DINO", "Clip", "Dino", "contrast", "prepared"]

CLIP = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
DINO = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def prepared(frames: Tensor, statistics: tuple[list[float], list[float]]) -> Tensor:
    """Frames (B, 3, H, W) in [-1, 1] as an encoder for just this size wants them."""
    mean, std = (torch.tensor(values, device=frames.device).view(1, 3, 1, 1) for values in statistics)
    return ((frames + 1) / 2 - mean) / std


def contrast(ours: Tensor, theirs: Tensor, same: Tensor, scale: Tensor | float) -> Tensor:
    """Cross entropy both ways between vectors (B, D) and (B, D); `same` (B, B) says which pairs match."""
    logits = scale * F.normalize(ours.float(), dim=-1) @ F.normalize(theirs.float(), dim=-1).T
    target = same.float() / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class _TextAndImage(nn.Module):
    """CLIP, and a line to read the motion from a caption: no picture shows it, yet text states must tell it."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.motion = nn.Linear(clip.config.text_config.hidden_size, len(MOTIONS))

    def forward(self, ids: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image vectors, text vectors, motions."""
        told = self.clip.text_model(input_ids=ids).pooler_output
        seen = self.clip.visual_projection(self.clip.vision_model(pixel_values=frames).pooler_output)
        return seen, self.clip.text_projection(told), self.motion(told)


class Clip(Stage):
    """Text and image encoder; the text encoder's states are what the denoisers are told."""

    name = "clip"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.world = setup.world()
        self.tokenizer: CLIPTokenizer = make_tokenizer(self.world.vocabulary())

    def make(self) -> _TextAndImage:
        return _TextAndImage(make_clip(self.setup.preset, self.tokenizer))

    def terms(self, model: _TextAndImage, step: int) -> dict[str, Tensor]:
        seen, told, same, read, motion = self.answer(model, self.how.batch, step)
        # As in CLIP, the scale is learned and held below 100.
        scale = model.clip.logit_scale.exp().clamp(max=100)
        moving = slice(len(motion) - self.how.batch // 2, None)
        return {
            "contrast": contrast(seen, told, same, scale),
            "motion": 0.2 * F.cross_entropy(read[moving].float(), motion[moving]),
        }

    def answer(self, model: _TextAndImage, n: int, *names: str | int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Image vectors, text vectors, which pairs match, motions as read, motions as they are."""
        parts = mixed(self.world, n, self.setup.random(self.name, *names))
        captions = [caption for part in parts for caption in part.captions]
        subject, place, motion = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("subject", "place", "motion")
        )
        frames = prepared(torch.cat([part.pixels[:, :, 0] for part in parts]), CLIP)
        ids = tokenize(self.tokenizer, captions, {}, first=len(self.tokenizer)).to(self.setup.device)
        seen, told, read = model(ids, frames)
        return seen, told, (subject[:, None] == subject) & (place[:, None] == place), read, motion

    @torch.no_grad()
    def judge(self, model: _TextAndImage) -> dict[str, float]:
        """Top 1 among 256, picture to caption and back; motions of captions that name one."""
        seen, told, same, read, motion = self.answer(model, 256, "held-out")
        logits = F.normalize(seen.float(), dim=-1) @ F.normalize(told.float(), dim=-1).T
        rows = torch.arange(len(logits), device=logits.device)
        return {
            "captions_found": same[rows, logits.argmax(dim=1)].float().mean().item(),
            "pictures_found": same[logits.argmax(dim=0), rows].float().mean().item(),
            "motions_read": (read.argmax(dim=1) == motion)[128:].float().mean().item(),
        }

    def write(self, model: _TextAndImage, folder: Path) -> None:
        model.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class Dino(Stage):
    """Two renderings of one sprite, elsewhere and otherwise lit, are alike; of two sprites they are not."""

    name = "dino"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.world = setup.world()
        self.strangers = setup.strangers()

    def make(self) -> Dinov2Model:
        return make_dino(self.setup.preset)

    def look(self, model: Dinov2Model, frames: Tensor) -> Tensor:
        """The vector that DINO-I compares: the class token's."""
        return model(prepared(frames, DINO)).last_hidden_state[:, 0]

    def terms(self, model: Dinov2Model, step: int) -> dict[str, Tensor]:
        random = self.setup.random(self.name, step)
        one = self.world.images(self.how.batch, random)
        other = self.world.images(self.how.batch, random, subject=[self.world.subjects[i] for i in one.subject])
        ours, theirs = (self.look(model, _relit(clips.pixels[:, :, 0], random)) for clips in (one, other))
        same = one.subject[:, None] == one.subject
        return {"contrast": contrast(ours, theirs, same.to(self.setup.device), 10.0)}

    @torch.no_grad()
    def judge(self, model: Dinov2Model) -> dict[str, float]:
        """Subjects it has never seen: is the nearest of them the same? And how alike are same and other ones?"""
        random = self.setup.random(self.name, "held-out")
        names = self.strangers.subjects
        views = [self.strangers.images(len(names), random, subject=names).pixels[:, :, 0] for _ in range(2)]
        ours, theirs = (F.normalize(self.look(model, view).float(), dim=-1) for view in views)
        alike = (ours @ theirs.T).cpu()
        right, others = alike.diagonal(), alike[~torch.eye(len(alike), dtype=torch.bool)]
        found = alike.argmax(dim=1) == torch.arange(len(alike))
        return {"found": found.float().mean().item(), "same": right.mean().item(), "other": others.mean().item()}

    def write(self, model: Dinov2Model, folder: Path) -> None:
        model.save_pretrained(folder)


def _relit(frames: Tensor, random: torch.Generator) -> Tensor:
    """Mirror half of the frames; change the light of all a little. (B, 3, H, W) in [-1, 1]"""
    mirror, light, contrast = torch.rand(3, len(frames), 1, 1, 1, generator=random).to(frames.device)
    frames = torch.where(mirror < 0.5, frames.flip(-1), frames)
    return (frames * (0.8 + 0.4 * contrast) + 0.3 * (light - 0.5)).clamp(-1, 1)
