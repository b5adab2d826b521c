"""How much learning changed which of a base's layers (DreamVideo, Fig. 4), from which the paper decides where its
adapters stand.

    Delta = || theta' - theta ||_2 / || theta ||_2,   its mean over the layers of a category

as in Custom Diffusion (Kumari et al. 2023, section 3.1). The paper tunes all spatial parameters on pictures, all
temporal ones on a clip, and does not say what a layer is: here it is one tensor, weight or bias. A mean is over what
the concept tuned, not over what it left alone; tensors of zeros have no rate and are left out. Over time both
attentions look at the frames themselves and count as self-attention.
"""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreamvideo.adapters.file import ConceptFile
from dreamvideo.adapters.graft import Axis, Site
from dreamvideo.adapters.storage import parameter
from dreamvideo.bases.base import VideoBase
from dreamvideo.errors import BadInput
from dreamvideo.files import whole
from dreamvideo.plots import Bar, bars
from dreamvideo.sample import check_base

__all__ = ["CATEGORIES", "Change", "Mean", "changes", "means", "write"]

CATEGORIES = ("cross-attention", "self-attention", "feed-forward", "other")
_AXES = {"space": "spatial", "time": "temporal", "joint": "all"}


@dataclass(frozen=True)
class Change:
    """Of one tensor of the base."""

    parameter: str
    """Its name in the denoiser."""
    axis: Axis
    category: str
    rate: float
    """Delta."""


@dataclass(frozen=True)
class Mean:
    """Of a category's tensors."""

    rate: float
    tensors: int


def changes(base: VideoBase, concept: ConceptFile) -> list[Change]:
    """The rates of all tensors that a concept changes at weight 1, in the order of its file.

    Raises:
        BadFile: it was learned on another base.
        BadInput: it changes none of the base's weights.
    """
    check_base(base, [concept])
    sums: dict[tuple[str, str], tuple[Site, Tensor]] = {}
    for adapters in concept.sets.values():
        for site, change in adapters.changes():
            before = sums.get((site.path, site.parameter))
            sums[site.path, site.parameter] = site, change if before is None else before[1] + change
    if not sums:
        kinds = ", ".join(dict.fromkeys(adapters.kind.label for adapters in concept.sets.values()))
        raise BadInput(f"{concept.meta.name}: {concept.meta.method} changes no weight of the base ({kinds})")
    found = []
    for site, change in sums.values():
        own = parameter(base.locate(site), site.parameter).detach().float().cpu()
        if (size := torch.linalg.vector_norm(own)) > 0:
            rate = torch.linalg.vector_norm(change.float().cpu()) / size
            found.append(Change(f"{site.path}.{site.parameter}", site.axis, _category(site), float(rate)))
    return found


def means(found: Sequence[Change]) -> dict[str, Mean]:
    """Category -> mean rate; a category of which nothing was tuned is absent."""
    rates = {category: [change.rate for change in found if change.category == category] for category in CATEGORIES}
    return {category: Mean(statistics.fmean(own), len(own)) for category, own in rates.items() if own}


def write(
    folder: Path, base: VideoBase, concepts: Sequence[ConceptFile]
) -> tuple[list[Path], dict[str, dict[str, Mean]]]:
    """Write weights.csv, a line for every tensor, and weights.png, the means of every concept side by side.

    Returns:
        The files, and what the plot shows: concept and axis -> category -> mean.

    Raises:
        BadFile, BadInput: see `changes`.
    """
    found = [(concept.meta, changes(base, concept)) for concept in concepts]
    shown = {
        f"{meta.name}, {meta.method}, {_AXES[axis]}": means([change for change in own if change.axis == axis])
        for meta, own in found
        for axis in dict.fromkeys(change.axis for change in own)
    }
    with whole(folder / "weights.csv") as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["concept", "method", "parameter", "axis", "category", "rate"])
        for meta, own in found:
            writer.writerows([meta.name, meta.method, c.parameter, c.axis, c.category, c.rate] for c in own)
    panels = {
        title: {category: Bar(mean.rate, f"{mean.tensors} tensors") for category, mean in own.items()}
        for title, own in shown.items()
    }
    plot = bars(folder / "weights.png", panels, y="Mean change rate")
    return [folder / "weights.csv", plot], shown


def _category(site: Site) -> str:
    parts = site.path.split(".")
    if "attn2" in parts and site.axis != "time":
        return "cross-attention"
    if "attn1" in parts or "attn2" in parts:
        return "self-attention"
    return "feed-forward" if "ff" in parts else "other"
