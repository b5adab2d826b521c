"""Who decides what a clip shows: trained on renderings alone, and no part of the base.

One small network looks at single frames. It says which subject and which place it sees, and where the subject is: its
centre, its side and its angle. The motion of a clip is that of the nearest of many true paths.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from world import MOTIONS, PLACES, paths

__all__ = ["Judge", "Motions", "Seen", "Verdict"]

_PATHS = 300
"""Of each motion, for comparison."""
_TURN_WEIGHT = 0.25
"""Of the angle's sine and cosine beside positions, which are in sides of the frame."""


@dataclass(frozen=True)
class Seen:
    """What the network makes of frames (..., 3, S, S)."""

    subject: Tensor  # (..., subjects) logits
    place: Tensor  # (..., PLACES) logits
    centre: Tensor  # (..., 2) x and y; the frame is [0, 1]
    scale: Tensor  # (...) side of the subject over side of the frame
    angle: Tensor  # (...) radians, clockwise


@dataclass(frozen=True)
class Verdict:
    """What clips are taken to show, and their tracks."""

    subject: list[str]
    place: list[str]
    motion: list[str]
    seen: Seen


class Judge(nn.Module):
    """Frames -> `Seen`; `verdict` for clips."""

    def __init__(self, subjects: Sequence[str], size: int, width: int = 48) -> None:
        super().__init__()
        self.subjects, self.size, self.width = tuple(subjects), size, width
        layers: list[nn.Module] = []
        channels, side = 3, size
        while side > 4:
            wider = width if channels == 3 else min(4 * width, 2 * channels)
            layers += [_layer(channels, wider), _layer(wider, wider, stride=2)]
            channels, side = wider, side // 2
        self.look = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 256), nn.SiLU())
        self.subject = nn.Linear(256, len(self.subjects))
        self.place = nn.Linear(256, len(PLACES))
        self.pose = nn.Linear(256, 5)

    def forward(self, frames: Tensor) -> Seen:
        """`frames` (..., 3, S, S) in [-1, 1], of any size: they are brought to the one that the network knows."""
        flat = frames.flatten(0, -4)
        if flat.shape[-1] != self.size:
            flat = F.interpolate(flat, self.size, mode="bilinear", antialias=True)
        features = self.look(flat).unflatten(0, frames.shape[:-3])
        x, y, size, cosine, sine = self.pose(features).float().unbind(-1)
        return Seen(
            subject=self.subject(features).float(),
            place=self.place(features).float(),
            centre=torch.stack((x, y), dim=-1),
            scale=size.exp(),
            angle=torch.atan2(sine, cosine),
        )

    def loss(self, frames: Tensor, subject: Tensor, place: Tensor, pose: Tensor) -> dict[str, Tensor]:
        """Terms for frames (B, 3, S, S), their classes (B,) and `pose` (B, 4): x, y, scale, angle."""
        features = self.look(frames)
        x, y, scale, angle = pose.unbind(-1)
        target = torch.stack((x, y, scale.log(), angle.cos(), angle.sin()), dim=-1)
        error = (self.pose(features).float() - target).square().mean(dim=0)
        return {
            "subject": F.cross_entropy(self.subject(features).float(), subject),
            "place": F.cross_entropy(self.place(features).float(), place),
            # The centre is wanted to a few hundredths of the frame.
            "centre": 20 * error[:2].sum(),
            "size": 5 * error[2],
            "turn": error[3:].sum(),
        }

    @torch.no_grad()
    def verdict(self, clips: Tensor, motions: "Motions") -> Verdict:
        """Judge clips (B, 3, F, S, S) in [-1, 1]: classes by the mean over frames."""
        seen = [self(part.transpose(1, 2)) for part in clips.split(64)]
        whole = Seen(*(torch.cat([getattr(one, name) for one in seen]) for name in Seen.__dataclass_fields__))
        return Verdict(
            subject=[self.subjects[row] for row in whole.subject.mean(dim=1).argmax(dim=-1)],
            place=[PLACES[row] for row in whole.place.mean(dim=1).argmax(dim=-1)],
            motion=motions.nearest(whole.centre, whole.scale, whole.angle),
            seen=whole,
        )

    def save(self, folder: Path) -> None:
        """Write the weights in half precision, and what is needed to build the network."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()},
            folder / "judge.safetensors",
        )
        about = {"subjects": self.subjects, "size": self.size, "width": self.width}
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        judge = cls(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        judge.load_state_dict(load_file(folder / "judge.safetensors"))
        return judge.float().eval().requires_grad_(False)


def _layer(channels: int, wider: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, wider, 3, stride, padding=1), nn.GroupNorm(8, wider), nn.SiLU())


class Motions:
    """True paths of named motions, and which of them another path is nearest to."""

    def __init__(self, frames: int, names: Sequence[str] = MOTIONS, *, seed: int = 0) -> None:
        self.names = tuple(name for name in names for _ in range(_PATHS))
        x, y, scale, angle = paths(self.names, frames, torch.Generator().manual_seed(seed)).unbind(-1)
        self._paths = _path(torch.stack((x, y), dim=-1), scale, angle)

    def nearest(self, centre: Tensor, scale: Tensor, angle: Tensor) -> list[str]:
        """The motions of tracks (B, F, 2), (B, F), (B, F)."""
        return [self.names[row] for row in self._distances(centre, scale, angle).argmin(dim=-1)]

    def distance(self, centre: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
        """How far tracks are from the nearest path: root mean square over frames, in sides of the frame. (B,)"""
        return self._distances(centre, scale, angle).amin(dim=-1) / centre.shape[1] ** 0.5

    def _distances(self, centre: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
        return torch.cdist(_path(centre, scale, angle), self._paths.to(centre.device))


def _path(centre: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
    turned = torch.stack((angle.cos(), angle.sin()), dim=-1) * _TURN_WEIGHT
    return torch.cat((centre, scale[..., None], turned), dim=-1).flatten(1)
