"""Scores of generated videos, one file each."""

from pathlib import Path

from dreamvideo import features
from dreamvideo.bases.base import VideoBase
from dreamvideo.bundled import bundled, card
from dreamvideo.metrics.metric import Metric
from dreamvideo.metrics.similarity import ClipT, SubjectSimilarity, TemporalConsistency

__all__ = ["for_base"]


def for_base(base: VideoBase, *, clip: str | Path | None = None, dino: str | Path | None = None) -> list[Metric]:
    """What can be measured with the given encoders' folders, or else with those that the base's card names."""
    home = bundled().get(base.name)
    named = {name: home / place for name, place in card(home).encoders.items()} if home is not None else {}
    clip, dino = clip or named.get("clip"), dino or named.get("dino")
    metrics: list[Metric] = []
    if clip is not None:
        images, texts = features.clip(clip)
        metrics += [ClipT(images, texts), TemporalConsistency(images)]
    if dino is not None:
        metrics.append(SubjectSimilarity("DINO-I", features.dino(dino)))
    return metrics
