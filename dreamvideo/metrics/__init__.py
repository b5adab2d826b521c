"""Scores of generated videos, one file for each kind."""

from pathlib import Path

from dreamvideo import features
from dreamvideo.bases.base import VideoBase
from dreamvideo.bundled import bundled, card
from dreamvideo.errors import BadInput
from dreamvideo.metrics import dynamic
from dreamvideo.metrics.clip import ClipI, ClipT, TemporalConsistency
from dreamvideo.metrics.dino import DinoI, Leak
from dreamvideo.metrics.dynamic import DynamicDegree, MotionDegree
from dreamvideo.metrics.lpips import Lpips, LpipsConsistency, LpipsDiversity
from dreamvideo.metrics.metric import Metric
from dreamvideo.metrics.motion import MotionFidelity

__all__ = ["for_base"]


def for_base(
    base: VideoBase | str | Path | None,
    *,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    lpips: str | Path | None = None,
    raft: str | Path | None = None,
    device: str = "cpu",
) -> list[Metric]:
    """All that can be measured with the encoders that a base's card names, or with those that are given.

    Args:
        base: itself, its name, or its folder; None has no card.
        clip: folder or hub id, instead of the card's; `openai/clip-vit-base-patch32` is the papers'.
        dino: likewise; `facebook/dino-vits16` is the papers'.
        lpips: folder with LPIPS's weights, see `metrics.lpips`.
        raft: file with its weights, see `metrics.dynamic.raft`.

    Raises:
        BadInput: a name or folder whose card names no encoders, an encoder that is none, or torchvision is missing
            for RAFT.
        MissingWeights: weights that are not here and cannot be fetched.
    """
    named = _encoders(base)
    clip, dino = clip or named.get("clip"), dino or named.get("dino")
    metrics: list[Metric] = []
    if clip is not None:
        images, texts = features.clip(clip, device=device)
        metrics += [ClipT(images, texts), ClipI(images), TemporalConsistency(images)]
    if dino is not None:
        images = features.dino(dino, device=device)
        metrics += [DinoI(images), Leak(images)]
    if lpips is not None:
        distance = Lpips.load(lpips, device=device)
        metrics += [LpipsConsistency(distance), LpipsDiversity(distance)]
    if raft is not None:
        metrics.append(DynamicDegree(dynamic.raft(raft, device=device)))
    return [*metrics, MotionDegree(), MotionFidelity()]


def _encoders(base: VideoBase | str | Path | None) -> dict[str, Path]:
    """What the card in the base's folder names; a loaded base need not have one."""
    if base is None:
        return {}
    reference = base.origin.reference if isinstance(base, VideoBase) else base
    folder = bundled().get(str(reference), Path(reference))
    named = {role: folder / place for role, place in card(folder).encoders.items()}
    if not named and not isinstance(base, VideoBase):
        raise BadInput(f"base {base}: has no card that names encoders; give a CLIP and a DINO by folder or hub id")
    return named
