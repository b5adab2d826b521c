"""Running a suite is doing what is missing of it."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from dreamvideo.bench.results import Store
from dreamvideo.bench.work import Cell, Task
from dreamvideo.bench.workers import Workers

__all__ = ["Progress", "run"]

TRIES = 3
"""How often a task is begun whose process died."""


@dataclass(frozen=True)
class Progress:
    """What is told after every task."""

    task: Task
    trouble: str | None
    """Why it failed, or must be tried again."""
    done: Mapping[str, tuple[int, int]]
    """Sort of task -> how many are done, and of how many."""
    seconds_left: float | None
    """About; None until one of every sort that is left was timed."""


def run(
    cells: Iterable[Cell],
    store: Store,
    workers: Workers,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, str]:
    """Make the cells that are missing, and learn what they need first.

    Returns:
        Key -> why: the cells that could not be made. The others are there.
    """
    missing = [cell for cell in cells if not cell.done(store)]
    needed = {need.key: need for cell in missing for need in cell.needs if not need.done(store)}
    state = _State([*needed.values(), *missing], store)
    while state.waiting or state.begun:
        while len(state.begun) < workers.size and (task := state.ready()) is not None:
            state.begin(task)
            workers.start(task, store)
        for outcome in workers.ended() if state.begun else ():
            trouble = state.end(outcome.task, refused=outcome.refused, died=outcome.died)
            on_progress(Progress(outcome.task, trouble, state.counts(), state.seconds_left(workers.size)))
    return {cell.key: state.failed[cell.key] for cell in missing if cell.key in state.failed}


@dataclass
class _State:
    """Where a run stands."""

    waiting: list[Task]
    store: Store
    begun: dict[str, tuple[Task, float]] = field(default_factory=dict)
    """Key -> the task, and when it was begun."""
    tries: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> why."""
    total: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = Counter(map(_sort, self.waiting))
        self.seconds = {sort: [] for sort in self.total}

    def ready(self) -> Task | None:
        """The first that can be begun. Those that wait in vain are given up."""
        for task in list(self.waiting):
            whys = [self.failed[need.key] for need in task.needs if need.key in self.failed]
            if whys:
                self.waiting.remove(task)
                self.failed[task.key] = whys[0]
            elif all(need.done(self.store) for need in task.needs):
                return task
        return None

    def begin(self, task: Task) -> None:
        self.waiting.remove(task)
        self.begun[task.key] = task, time.monotonic()
        self.tries[task.key] += 1

    def end(self, task: Task, *, refused: str | None, died: str | None) -> str | None:
        """Take note of how a task ended; what went wrong is returned."""
        took = time.monotonic() - self.begun.pop(task.key)[1]
        if refused is None and died is None and not task.done(self.store):
            refused = "it left no result; do all workers see the same folder?"
        if died is not None and self.tries[task.key] < TRIES:
            self.waiting.insert(0, task)
        elif died is not None:
            self.failed[task.key] = f"{died}, {TRIES} times"
        elif refused is not None:
            self.failed[task.key] = refused
        else:
            self.seconds[_sort(task)].append(took)
        return refused or died

    def counts(self) -> dict[str, tuple[int, int]]:
        return {sort: (len(self.seconds[sort]), count) for sort, count in self.total.items()}

    def seconds_left(self, size: int) -> float | None:
        going_on = [(task, time.monotonic() - begun) for task, begun in self.begun.values()]
        left = [
            (self.seconds[_sort(task)], took) for task, took in [*going_on, *((task, 0.0) for task in self.waiting)]
        ]
        if any(not timed for timed, _ in left):
            return None
        return sum(max(0.0, statistics.mean(timed) - took) for timed, took in left) / size


def _sort(task: Task) -> str:
    return type(task).__name__.lower()
