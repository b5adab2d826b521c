"""The official adapter checkpoints, `{"state_dict": {name: Parameter}, "step": int}`, <-> concepts.

An identity adapter sits in spatial transformers, a motion adapter in temporal ones; which of the two a tensor
belongs to is said by its name. Placement is not in the file: the official code has it in its configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor, nn

from dreamvideo.adapters.bottleneck import Bottleneck, Placement
from dreamvideo.adapters.file import ConceptFile, Meta, Sampling
from dreamvideo.adapters.graft import AdapterSet, Site
from dreamvideo.errors import BadFile, Unsupported
from dreamvideo.official.checkpoint import naming, read_tensors, write_checkpoint
from dreamvideo.official.names import MODELSCOPE, Layout, adapter_layers, inverted, renamed, spatial

__all__ = ["BASE", "FAMILY", "Plan", "by_set", "plan", "read_adapters", "write_adapters"]

FAMILY = "unet3d"
BASE = "ali-vilab/text-to-video-ms-1.7b"


class Plan(NamedTuple):
    """What a set is to be built from."""

    kind: Bottleneck
    sites: tuple[Site, ...]


def read_adapters(
    path: str | Path,
    *,
    name: str,
    created_by: str,
    base: str = BASE,
    licence: str | None = None,
    layout: Layout = MODELSCOPE,
    placement: Placement = "parallel",
    appearance: tuple[float, float] = (1.0, 0.0),
    word: str | None = None,
    caption: str | None = None,
) -> ConceptFile:
    """Read an official adapter as a concept with the set `identity`, the set `motion`, or both: then a subject.

    Args:
        name: of the concept.
        base: name of the base that it was learned on.
        licence: of that base.
        layout: of that base.
        placement: of all adapters in the file.
        appearance: strengths of appearance guidance in the conditional and the unconditional branch; the official
            configurations use (1, 0) for motions of several clips and (1, 1) for motions of one.
        word: class word of a subject.
        caption: of a motion's clips.

    Raises:
        BadFile: unreadable, or it holds something other than adapters of this layout.
    """
    tensors, step = read_tensors(path)
    sets = {}
    with naming(path):
        for label, part in by_set(tensors, layout).items():
            kind, sites = plan(label, part, placement)
            sets[label] = AdapterSet(kind, sites)
            sets[label].load_state_dict(part)
            sets[label].requires_grad_(False)
    role = "subject" if "identity" in sets else "motion"
    meta = Meta(
        name=name,
        role=role,
        word=word,
        caption=caption,
        family=FAMILY,
        base=base,
        licence=licence,
        method=f"dreamvideo-{role}",
        steps={} if step is None else dict.fromkeys(sets, step),
        sampling=Sampling(noise_offset=0.1, appearance=appearance),
        created_by=created_by,
    )
    return ConceptFile(meta, sets, Path(path))


def write_adapters(path: str | Path, concept: ConceptFile, *, layout: Layout = MODELSCOPE) -> None:
    """Write a concept's bottleneck adapters as one official checkpoint; its word has a file of its own.

    Raises:
        Unsupported: it has no such adapter, or one that the official code has no name for.
    """
    names, tensors, steps = inverted(adapter_layers(layout)), {}, [0]
    for label, adapter in concept.sets.items():
        if not isinstance(adapter.kind, Bottleneck):
            continue
        if adapter.kind.form != "bottleneck":
            raise Unsupported(f"set {label}: the official code has no adapter of the form {adapter.kind.form!r}")
        for name, tensor in adapter.state_dict().items():
            key = renamed(name, names)
            if key is None:
                raise Unsupported(f"set {label}: the official code has no name for {name}")
            tensors[key] = nn.Parameter(tensor.cpu().contiguous())
        steps.append(concept.meta.steps.get(label, 0))
    if not tensors:
        raise Unsupported(
            f"concept {concept.meta.name} has no bottleneck adapter, which is all the official code reads"
        )
    write_checkpoint(path, tensors, step=max(steps))


def by_set(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, dict[str, Tensor]]:
    """Official tensors under our names, `path.port.layer.part`, by the set that they belong to.

    Raises:
        BadFile: one is no part of an adapter.
    """
    names, space = adapter_layers(layout), tuple(f"{place}." for place in spatial(layout))
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = renamed(key, names)
        if name is None:
            raise BadFile(
                f"tensor {key} is foreign; expected adapters of the official code, named *_adapter.*_linear.*, "
                f"with {layout.layers} residual blocks a level"
            )
        parts.setdefault("identity" if key.startswith(space) else "motion", {})[name] = tensor
    return parts


def plan(label: str, tensors: Mapping[str, Tensor], placement: Placement = "parallel") -> Plan:
    """The kind and the sites of a set, from the shapes of its tensors.

    Raises:
        BadFile: a weight is no matrix, or no adapter has an upper layer.
    """
    matrices: dict[str, dict[tuple[str, str], Tensor]] = {"down": {}, "up": {}, "condition": {}}
    for name, tensor in tensors.items():
        path, port, layer, part = name.rsplit(".", 3)
        if part == "weight":
            if tensor.ndim != 2:
                raise BadFile(f"tensor {name} has {tensor.ndim} axes, not 2")
            matrices[layer][path, port] = tensor
    axis: Literal["space", "time"] = "space" if label == "identity" else "time"
    sites = tuple(Site(path, port, axis, len(up)) for (path, port), up in matrices["up"].items())
    if not sites:
        raise BadFile(f"the {label} adapters have no up_linear.weight")
    halved = all(down.shape[0] == down.shape[1] // 2 for down in matrices["down"].values())
    hidden = None if halved else min(len(down) for down in matrices["down"].values())
    condition = min((layer.shape[1] for layer in matrices["condition"].values()), default=None)
    return Plan(Bottleneck(hidden=hidden, condition=condition, placement=placement), sites)
