"""Make EmojiWorld, stage after stage: vae, clip, dino, judge, image, video, motion, assemble.

    python pretrain/train.py STAGE --out DIR --minutes M [--preset cpu|gpu] [--size S] [--frames F] [--sprites FILE]

A stage stops when it has had its minutes, all calls together; the same command goes on from where it was stopped, and
more minutes later continue it. What it leaves is in DIR/STAGE, its state in DIR/STAGE.state.pt, what it told in
DIR/STAGE.log.jsonl, and what it looks like in DIR/preview-STAGE.png.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models import PRESETS, millions
from stages.assemble import assemble
from stages.diffusion import Images, MotionModule, Video
from stages.encoders import Clip, Dino
from stages.judge import Judging
from stages.stage import Setup, Stage
from stages.vae import Autoencoder
from torch import Tensor, nn

from dreamvideo.errors import DreamVideoError, RunFailed
from dreamvideo.files import whole
from dreamvideo.stopping import stopping

__all__ = ["STAGES", "Limits", "fit", "main"]

STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (Autoencoder, Clip, Dino, Judging, Images, Video, MotionModule)
}
_WARMUP = 100
"""Steps."""
_COOLING = 0.3
"""The last part of a stage, in which the learning rate falls to nothing."""
_AVERAGE = 0.998
"""Decay of the running mean of the weights, less at the beginning."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop, and in seconds when to tell, save and show."""

    minutes: float = math.inf
    steps: int | None = None
    tell: float = 10
    save: float = 60
    show: float = 240

    def done(self, step: int, seconds: float) -> float:
        """How much of the stage is over; from 1 on it is."""
        return max(seconds / 60 / self.minutes, step / self.steps if self.steps else 0.0)


@dataclass
class _Learner:
    """A model on its way, and what going on needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, stage: Stage) -> "_Learner":
        torch.manual_seed(stage.setup.random(stage.name, "weights").initial_seed())
        # Dropout is of no use where no example comes twice; else the mode makes no difference.
        model = stage.make().eval().to(stage.setup.device)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fused = stage.setup.device.type == "cuda"
        optimizer = torch.optim.AdamW(learned, lr=stage.how.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=fused)
        average = copy.deepcopy(model).requires_grad_(False) if stage.averaged else None
        return cls(model, optimizer, average)

    @property
    def best(self) -> nn.Module:
        return self.average or self.model

    def save(self, file: Path) -> None:
        state = {"step": self.step, "seconds": self.seconds, "optimizer": self.optimizer.state_dict()}
        state |= {"model": self.model.state_dict(), "average": self.average and self.average.state_dict()}
        with whole(file) as draft:
            torch.save(state, draft)

    def load(self, file: Path) -> None:
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """One step from the gradients that are there."""
        learned = self.optimizer.param_groups[0]["params"]
        nn.utils.clip_grad_norm_(learned, 1.0)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            keep = min(_AVERAGE, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)


@dataclass
class _Diary:
    """Lines for people and for later: the mean of what was told since the last one."""

    file: Path
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    samples: int = 0
    since: float = field(default_factory=time.monotonic)

    def note(self, terms: dict[str, Tensor], samples: int) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term.detach()
        self.steps, self.samples = self.steps + 1, self.samples + samples

    def tell(self, **facts: Any) -> None:
        """Write a line of the facts and, where steps were noted, of their means and speed."""
        if self.steps:
            means = {name: round(float(value) / self.steps, 6) for name, value in self.sums.items()}
            facts |= {"loss": round(sum(means.values()), 6), **(means if len(means) > 1 else {})}
            facts["samples_per_s"] = round(self.samples / (time.monotonic() - self.since), 1)
            if not math.isfinite(facts["loss"]):
                raise RunFailed(f"the loss is not finite at {facts}; the last good state is kept: lower the rate")
        self.sums, self.steps, self.samples, self.since = {}, 0, 0, time.monotonic()
        line = json.dumps(facts)
        print(line, flush=True)
        with self.file.open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def fit(stage: Stage, limits: Limits, *, stopped: Callable[[], bool] = lambda: False) -> Path:
    """Learn one stage, going on from its state, until it is done or stopped; write what it leaves."""
    out, setup = stage.setup.out, stage.setup
    out.mkdir(parents=True, exist_ok=True)
    diary, state = _Diary(out / f"{stage.name}.log.jsonl"), out / f"{stage.name}.state.pt"
    learner = _Learner.begin(stage)
    if state.exists():
        learner.load(state)
    diary.tell(stage=stage.name, step=learner.step, seconds=round(learner.seconds), millions=millions(learner.model))
    if setup.device.type == "cuda":
        learner.model.compile()
    begun = time.monotonic() - learner.seconds
    told = saved = shown = learner.seconds
    while (done := limits.done(learner.step, learner.seconds)) < 1 and not stopped():
        with setup.autocast():
            terms = stage.terms(learner.model, learner.step)
        sum(terms.values()).backward()
        learner.update(stage.how.lr * _rate(learner.step, done))
        diary.note(terms, stage.samples(learner.step - 1))
        now = learner.seconds = time.monotonic() - begun
        if now - told > limits.tell:
            told = now
            diary.tell(stage=stage.name, step=learner.step, seconds=round(now))
        if now - saved > limits.save:
            saved = now
            learner.save(state)
        if now - shown > limits.show:
            shown = now
            _show(stage, learner)
    if diary.steps:
        diary.tell(stage=stage.name, step=learner.step, seconds=round(learner.seconds))
        learner.save(state)
        _show(stage, learner)
    with setup.autocast():
        verdict = {name: round(value, 5) for name, value in stage.judge(learner.best).items()}
    diary.tell(
        stage=stage.name, step=learner.step, seconds=round(learner.seconds), done=round(min(1, done), 3), **verdict
    )
    with whole(out / stage.name) as folder:
        stage.write(learner.best, folder)
    return out / stage.name


def _rate(step: int, done: float) -> float:
    """Up, level, and down along a cosine; a stage that is given more time goes up again."""
    falling = max(0.0, (done - 1 + _COOLING) / _COOLING)
    return min(1.0, (step + 1) / _WARMUP) * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, falling))) / 2)


def _show(stage: Stage, learner: _Learner) -> None:
    with stage.setup.autocast():
        page = stage.preview(learner.best)
    if page is not None:
        with whole(stage.setup.out / f"preview-{stage.name}.png") as draft:
            page.save(draft)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "assemble"])
    parser.add_argument("--out", type=Path, required=True, help="folder of all stages")
    parser.add_argument("--minutes", type=float, default=10, help="of the stage, all calls together")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--size", type=int, choices=(32, 64), help="pixels along a side")
    parser.add_argument("--frames", type=int, help="of a clip")
    parser.add_argument("--sprites", type=Path, default=Path(__file__).parent / "sprites.safetensors")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Run one stage."""
    given = _arguments(words)
    if given.threads:
        torch.set_num_threads(given.threads)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if given.device == "auto" else given.device)
    # Processors without these instructions would be slower for it.
    quick = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    setup = Setup(
        out=given.out,
        preset=PRESETS[given.preset].sized(size=given.size, frames=given.frames),
        sprites=given.sprites,
        device=device,
        half=given.precision == "bf16" or (given.precision == "auto" and quick),
        seed=given.seed,
    )
    try:
        if given.stage == "assemble":
            print(json.dumps(assemble(setup)))
            return
        with stopping() as stopped:
            fit(STAGES[given.stage](setup), Limits(minutes=given.minutes), stopped=stopped)
    except DreamVideoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
