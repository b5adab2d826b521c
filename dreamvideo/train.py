"""The training loop. There is one."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamvideo import memory, processes
from dreamvideo.adapters.file import ConceptFile, load
from dreamvideo.adapters.graft import AdapterSet
from dreamvideo.bases.base import VideoBase
from dreamvideo.concept import Concept
from dreamvideo.data import Data, Sampler, order
from dreamvideo.diffusion import Draw, generator
from dreamvideo.errors import Interrupted, RunFailed
from dreamvideo.methods.method import Stage
from dreamvideo.progress import Progress, driven
from dreamvideo.recipe import Recipe, TrainConfig
from dreamvideo.run import Run, State, described
from dreamvideo.stopping import stopping

__all__ = ["fit", "updates"]


def fit(
    recipe: Recipe,
    base: VideoBase,
    concept: Concept,
    folder: Path,
    *,
    restart: bool = False,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_preview: Callable[[ConceptFile, Path], None] | None = None,
    sampler: Sampler | None = None,
) -> ConceptFile:
    """Learn `concept` into `folder`, going on from where an earlier run of the same recipe stopped.

    On a CPU the result of a run that was stopped and continued is, bit for bit, that of one left alone: every step's
    randomness is made from the step's number. `sampler` makes class images for the methods that want them.

    Raises:
        BadConfig: `folder` holds a run of another recipe.
        BadInput: it will not fit into memory.
        RunFailed: the loss is not finite; the last good state is kept.
        Interrupted: SIGINT or SIGTERM came; the step was finished and the state saved.
    """
    with stopping() as stopped:
        work = updates(
            recipe, base, concept, folder, restart=restart, stopped=stopped, on_preview=on_preview, sampler=sampler
        )
        return driven(work, on_step)


def updates(
    recipe: Recipe,
    base: VideoBase,
    concept: Concept,
    folder: Path,
    *,
    restart: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    on_preview: Callable[[ConceptFile, Path], None] | None = None,
    sampler: Sampler | None = None,
) -> Generator[Progress, None, ConceptFile]:
    """`fit` as a part of other work. `stopped` says when to leave; closed between updates, the newest state is kept.

    Raises:
        BadConfig, BadInput, RunFailed, Interrupted: as `fit`.
    """
    # What the method cannot use is refused before anything is written.
    stages = recipe.method.stages(base, concept, seed=recipe.train.seed)
    for example in concept.examples:
        recipe.method.prompt(concept, example)
    memory.check(recipe, base, concept, stages)
    here = processes.here(str(base.device))
    with here.main_process_first():
        run = Run(folder, recipe, restart=restart and here.is_main_process)
    if (done := run.finished()) is not None:
        return done
    begun = time.monotonic()
    loop = _Loop(recipe, base, concept, run, stages, on_preview, sampler)
    state = run.load_state()
    state.restore_sets(loop.sets)
    how = {name: getattr(recipe.train, name) for name in ("rematerialise", "offload", "dropout", "compile")}
    with base.learning(**how):
        for number in range(state.stage, len(loop.stages)):
            state = yield from loop.learn(number, state, stopped)
    if here.is_main_process:
        seconds = round(time.monotonic() - begun, 2)
        run.finish(loop.concept_file(), base.device, seconds=seconds, processes=here.num_processes)
    here.wait_for_everyone()
    return load(run.result)


class _Loop:
    """What the stages of one run share."""

    def __init__(
        self,
        recipe: Recipe,
        base: VideoBase,
        concept: Concept,
        run: Run,
        stages: Sequence[Stage],
        on_preview: Callable[[ConceptFile, Path], None] | None,
        sampler: Sampler | None,
    ) -> None:
        self.recipe, self.base, self.concept, self.run, self.stages = recipe, base, concept, run, stages
        self.on_preview = on_preview
        self.config: TrainConfig = recipe.train
        self.here = processes.here(str(base.device))
        # Only fp16 needs it; disabled, it hands everything through.
        self.scaler = torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)
        wants = frozenset().union(*(stage.wants for stage in self.stages))
        with self.here.main_process_first():
            self.data = Data(
                base,
                concept,
                recipe.data,
                prompt=recipe.method.prompt,
                wants=wants,
                views=[view for stage in stages for view in stage.views],
                class_images=recipe.method.class_images(concept),
                sampler=sampler,
                cache=run.cache,
            )

    @property
    def sets(self) -> dict[str, AdapterSet]:
        """Everything that any stage learns, by its name in the file."""
        return {name: adapters for stage in self.stages for name, adapters in stage.learn.items()}

    def steps(self, stage: Stage) -> int:
        return stage.steps if self.config.steps is None else self.config.steps

    def concept_file(self, stage: Stage | None = None, step: int = 0) -> ConceptFile:
        """The concept as it is now: after `step` updates of `stage`, or at the end."""
        steps = {each.name: self.steps(each) for each in takewhile(lambda each: each is not stage, self.stages)}
        if stage is not None:
            steps[stage.name] = step
        aside = frozenset().union(*(each.aside for each in self.stages))
        kept = {name: adapters for name, adapters in self.sets.items() if name not in aside}
        return ConceptFile(described(self.recipe, self.base, self.concept, steps), kept)

    def learn(self, number: int, state: State, stopped: Callable[[], bool]) -> Generator[Progress, None, State]:
        """Run one stage from `state` to its end."""
        stage, config, total = self.stages[number], self.config, self.steps(self.stages[number])
        for adapters in stage.hold.values():
            adapters.requires_grad_(False)
        parameters = [p for adapters in stage.learn.values() for p in adapters.requires_grad_(True).parameters()]
        with self.base.attached(*stage.hold.values(), *stage.learn.values()):
            # Attaching has moved the sets to the base's device, where the optimizer wants them.
            self.data.encode_text()
            optimizer = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=config.weight_decay, fused=True)
            if state.step:
                state.restore_optimizer(optimizer, self.scaler)
            batches = self.batches(skip=state.step)
            for step in range(state.step + 1, total + 1):
                optimizer.param_groups[0]["lr"] = stage.lr * min(1.0, step / max(1, config.warmup))
                row = self.update(stage, step, batches, parameters, optimizer)
                if self.here.is_main_process:
                    # Before the state: a row without its state is dropped when going on, the other way round is a gap.
                    self.run.log({"stage": number, "name": stage.name, "step": step, **row})
                last, stop = step == total, processes.agreed(self.here, stopped())
                if last or stop or step % config.save_every == 0:
                    going_on = State.of(number, step, self.sets, optimizer, self.scaler)
                    self.save(stage, step, State.of(number + 1, 0, self.sets) if last else going_on)
                if self.here.is_main_process:
                    yield Progress(stage.name, step, total, row["loss"])
                    self.preview(stage, step)
                if stop and not (last and stage is self.stages[-1]):
                    where = f"step {step} of {total} of stage {stage.name}"
                    raise Interrupted(f"stopped after {where}; the same command goes on from here")
        return State(stage=number + 1)

    def batches(self, *, skip: int) -> Iterator[list[int]]:
        """This process's batches, after those of `skip` updates."""
        count = self.here.num_processes
        everyone = order(len(self.data), self.config.batch, seed=self.config.seed, config=self.recipe.data)
        first = skip * self.config.accumulate * count + self.here.process_index
        return islice(everyone, first, None, count)

    def update(
        self, stage: Stage, step: int, batches: Iterator[list[int]], parameters: list[nn.Parameter], optimizer: Any
    ) -> dict[str, float]:
        """One update of the parameters: the mean gradient of `accumulate` batches."""
        config, sums, process = self.config, dict[str, float](), self.here.process_index
        noisy = config.dropout > 0 or any(adapters.kind.dropout for adapters in stage.learn.values())
        for micro in range(config.accumulate):
            draw = Draw(self.base.process, generator(config.seed, stage.name, step, micro, process))
            with torch.random.fork_rng(enabled=noisy):
                if noisy:
                    torch.manual_seed(draw.seed())
                for name, term in self.terms(stage, next(batches), draw):
                    self.scaler.scale(term / config.accumulate).backward()
                    sums[name] = sums.get(name, 0.0) + term.item() / config.accumulate
        loss = sum(sums.values())
        if not math.isfinite(loss):
            raise self.failure(stage, step)
        processes.average(self.here, parameters)
        if config.clip is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, config.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        return {"loss": loss, **sums}

    def terms(self, stage: Stage, numbers: Sequence[int], draw: Draw) -> Iterator[tuple[str, Tensor]]:
        """The method's terms; autocast covers the forward pass alone."""
        with self.base.autocast():
            batch = self.data.batch(numbers, draw, live_text=stage.live_text, views=stage.views)
            terms = self.recipe.method.terms(self.base, self.sets, batch, draw)
        while True:
            with self.base.autocast():
                named = next(terms, None)
            if named is None:
                return
            yield named

    def preview(self, stage: Stage, step: int) -> None:
        """Show what is learned, where that is due."""
        every = self.config.preview_every
        if self.on_preview is not None and every and step % every == 0:
            with self.base.resting(), stage.unaided():
                place = self.run.folder / "samples" / f"{stage.name}-{step:06d}.mp4"
                self.on_preview(self.concept_file(stage, step), place)

    def save(self, stage: Stage, step: int, state: State) -> None:
        """Write the state and a checkpoint, unless what was learned is broken."""
        if not state.finite:
            raise self.failure(stage, step)
        if self.here.is_main_process:
            self.run.save_state(state)
            self.run.checkpoint(self.concept_file(stage, step), stage.name, step)
        self.here.wait_for_everyone()

    def failure(self, stage: Stage, step: int) -> RunFailed:
        return RunFailed(
            f"the loss is not finite at step {step} of stage {stage.name}; the last good state is kept in "
            f"{self.run.folder / 'state'}; with another --out, learn slower than {stage.lr:g} or use --dtype fp32"
        )
