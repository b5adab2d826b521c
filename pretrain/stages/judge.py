"""The judge of clips: it learns from renderings, made worse the way decoded pictures are."""

from pathlib import Path

import torch
import torch.nn.functional as F
from judges import Judge, Motions
from torch import Tensor

from stages.stage import Setup, Stage, mixed

__all__ = ["Judging"]


class Judging(Stage):
    """Which subject, which place, and where the subject is."""

    name = "judge"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.world = setup.world(narrow=setup.preset.narrow)

    def make(self) -> Judge:
        return Judge(self.world.subjects, self.setup.preset.size)

    def terms(self, model: Judge, step: int) -> dict[str, Tensor]:
        random = self.setup.random(self.name, step)
        parts = mixed(self.world, self.how.batch, random)
        frames = torch.cat([part.pixels[:, :, 0] for part in parts])
        subject, place = (torch.cat([getattr(part, name) for part in parts]) for name in ("subject", "place"))
        pose = torch.cat([torch.cat((p.centre, p.scale[..., None], p.angle[..., None]), dim=-1)[:, 0] for p in parts])
        return model.loss(_worn(frames, random), subject, place, pose)

    @torch.no_grad()
    def judge(self, model: Judge) -> dict[str, float]:
        """How often it is right about rendered clips that it has not seen, and how far off its tracks are."""
        clips = self.world.clips(384, self.setup.preset.frames, self.setup.random(self.name, "held-out"))
        motions = Motions(self.setup.preset.frames)
        verdict = model.verdict(clips.pixels, motions)
        truth = self.world.described(clips)
        right = {
            name: sum(a == b for a, b in zip(getattr(verdict, name), truth[name], strict=True)) / len(truth[name])
            for name in ("subject", "place", "motion")
        }
        seen = verdict.seen
        turned = torch.remainder(seen.angle - clips.angle + torch.pi, 2 * torch.pi) - torch.pi
        return right | {
            "centre_off": (seen.centre - clips.centre).norm(dim=-1).mean().item(),
            "scale_off": (seen.scale / clips.scale).log().abs().mean().item(),
            "angle_off": turned.abs().mean().item(),
        }

    def write(self, model: Judge, folder: Path) -> None:
        model.save(folder)


def _worn(frames: Tensor, random: torch.Generator) -> Tensor:
    """Frames (B, 3, S, S) of which some are blurred, all a little noisy and otherwise lit."""
    n, size = len(frames), frames.shape[-1]
    blur, light, contrast = torch.rand(3, n, 1, 1, 1, generator=random).to(frames.device)
    noise = torch.randn(frames.shape, generator=random).to(frames.device)
    soft = F.interpolate(F.interpolate(frames, size // 2, mode="bilinear", antialias=True), size, mode="bilinear")
    frames = frames + (soft - frames) * (1.6 * blur - 0.6).clamp(min=0)
    return (frames * (0.85 + 0.3 * contrast) + 0.2 * (light - 0.5) + 0.04 * noise).clamp(-1, 1)
