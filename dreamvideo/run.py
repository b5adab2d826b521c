"""A run's folder: what was asked, what happened, and a state from which it can go on.

recipe.toml      the resolved recipe            checkpoints/   the concept at every save
metrics.jsonl    one line per update            samples/       previews
state/           the newest state               NAME.safetensors  the result
cache/           encoded examples               run.json       versions, device, seconds, peak memory
"""

import json
import resource
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamvideo import config
from dreamvideo.adapters.file import ConceptFile, Meta, load, save
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept
from dreamvideo.errors import BadConfig
from dreamvideo.files import whole, write_json, write_text
from dreamvideo.recipe import FREE, Recipe

__all__ = ["Run", "State", "described"]

Sets = Mapping[str, AdapterSet]


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands: `step` updates of stage number `stage` are done.

    No random state is among it: every step's randomness is made from the step's number.
    """

    stage: int = 0
    step: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """`set/NAME/...` of the adapter sets and `optimizer/NUMBER/...`; empty at the very start."""
    scaler: Mapping[str, float] | None = None
    """Of the gradient scaler, in fp16."""

    @classmethod
    def of(cls, stage: int, step: int, sets: Sets, optimizer: Any = None, scaler: Any = None) -> "State":
        """A copy of what is learned. `optimizer` is None between stages."""
        tensors = {f"set/{s}/{n}": t.cpu().clone() for s, a in sets.items() for n, t in a.state_dict().items()}
        if optimizer is None:
            return cls(stage=stage, step=step, tensors=tensors)
        moments = optimizer.state_dict()["state"]
        tensors |= {f"optimizer/{i}/{key}": value for i, item in moments.items() for key, value in item.items()}
        return cls(stage=stage, step=step, tensors=tensors, scaler=scaler and scaler.state_dict())

    @property
    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors.values())

    def restore_sets(self, sets: Sets) -> None:
        """Copy what was learned, if anything was, back into `sets`."""
        if not self.tensors:
            return
        for name, adapters in sets.items():
            start = f"set/{name}/"
            own = {key.removeprefix(start): t for key, t in self.tensors.items() if key.startswith(start)}
            adapters.load_state_dict(own)

    def restore_optimizer(self, optimizer: Any, scaler: Any) -> None:
        """Put an optimizer, and in fp16 the gradient scaler, back to where they were."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            kind, number, key = name.split("/", maxsplit=2)
            if kind == "optimizer":
                moments.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        if scaler is not None and self.scaler is not None:
            scaler.load_state_dict(dict(self.scaler))


class Run:
    """One run folder."""

    def __init__(self, folder: Path, recipe: Recipe, *, restart: bool = False) -> None:
        """Begin in `folder`, or go on with what is there.

        Raises:
            BadConfig: another recipe's run is there.
        """
        self.folder = folder
        self.result = folder / f"{recipe.concept['name']}.safetensors"
        known = folder / "recipe.toml"
        if restart and known.exists():
            for name in ("state", "checkpoints", "samples"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("recipe.toml", "metrics.jsonl", "run.json", self.result.name):
                (folder / name).unlink(missing_ok=True)
        if known.exists():
            changed = config.differences(config.read_toml(known), recipe.plain(), ignore=FREE)
            if changed:
                raise BadConfig(
                    f"{folder} holds a run of another recipe ({'; '.join(changed[:3])}"
                    f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}): "
                    "give another --out, or --restart to begin anew"
                )
        else:
            config.write_toml(known, recipe.plain())

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def finished(self) -> ConceptFile | None:
        """The result, if the run is done."""
        return load(self.result) if self.result.exists() else None

    def finish(self, concept: ConceptFile, device: torch.device, *, seconds: float, processes: int) -> None:
        """Write the result and what it took; the state is no longer needed."""
        facts = {
            "versions": {name: version(name) for name in ("dreamvideo", "torch", "diffusers", "transformers")},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": processes,
            "seconds": seconds,
            "peak_memory_bytes": _peak_memory(device),
        }
        write_json(self.folder / "run.json", facts)
        save(self.result, concept)
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    def checkpoint(self, concept: ConceptFile, stage: str, step: int) -> None:
        """Keep the concept as it is now."""
        save(self.folder / "checkpoints" / f"{stage}-{step:06d}.safetensors", concept)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save_state(self, state: State) -> None:
        """Replace the newest state."""
        facts = {"stage": state.stage, "step": state.step, "scaler": state.scaler}
        with whole(self.folder / "state" / "newest.safetensors") as draft:
            save_file(dict(state.tensors), draft, metadata={"state": json.dumps(facts)})

    def load_state(self) -> State:
        """The newest state; lines of metrics.jsonl from after it are dropped, because they will be written again."""
        path = self.folder / "state" / "newest.safetensors"
        state = State()
        if path.exists():
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            state = State(**facts, tensors=tensors)
        self._forget_after(state)
        return state

    def _forget_after(self, state: State) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill can leave half a line at the end.
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        kept = [row for row in rows if (row["stage"], row["step"]) <= (state.stage, state.step)]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def described(recipe: Recipe, base: VideoBase, concept: Concept, steps: Mapping[str, int]) -> Meta:
    """What a concept's file says of itself after `steps` updates of each stage."""
    method = recipe.plain()["method"]
    return Meta(
        name=concept.name,
        role=recipe.method.role,
        word=concept.word,
        caption=concept.caption,
        family=base.family,
        base=base.name,
        fingerprint=base.fingerprint,
        licence=base.origin.licence,
        method=method.pop("name"),
        settings=method,
        steps=steps,
        recipe=recipe.digest,
        sampling=recipe.method.sampling(),
        created_by=f"dreamvideo {version('dreamvideo')}",
    )


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
