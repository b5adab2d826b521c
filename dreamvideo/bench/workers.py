"""Where tasks are done: in processes of this machine, or of a Ray cluster. A process that dies loses its task alone."""

import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import transformers

from dreamvideo.bench.results import Store
from dreamvideo.bench.work import Task, attempt
from dreamvideo.errors import BadInput

__all__ = ["LocalWorkers", "Outcome", "RayWorkers", "Workers"]

_PATIENCE = 60  # seconds for a worker to end when asked


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    task: Task
    refused: str | None = None
    """An explained failure, which would come again."""
    died: str | None = None
    """What became of the process, which says nothing of the task."""


class Workers(ABC):
    """Questions: how many tasks at once (`size`)? `start` one. `ended`: wait until some have ended, and how? `close`:
    stop what is still going on."""

    size: int

    @abstractmethod
    def start(self, task: Task, store: Store) -> None: ...

    @abstractmethod
    def ended(self) -> Iterator[Outcome]: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LocalWorkers(Workers):
    """Processes of this machine, started afresh and not forked: each has its own memory, threads and randomness."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Task]] = {}

    def start(self, task: Task, store: Store) -> None:
        if self._idle and task.alone:
            self._idle.pop().stop()
        worker = self._idle.pop() if self._idle and not task.alone else _Worker(self._context)
        worker.connection.send((task, store))
        self._busy[worker.connection] = worker, task

    def ended(self) -> Iterator[Outcome]:
        for connection in wait(list(self._busy)):
            worker, task = self._busy.pop(connection)  # type: ignore[index]
            try:
                refused = worker.connection.recv()
            except (EOFError, ConnectionError):
                worker.process.join(_PATIENCE)
                yield Outcome(task, died=f"its process ended with code {worker.process.exitcode}")
            else:
                self._idle.append(worker)
                yield Outcome(task, refused=refused)

    def close(self) -> None:
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker, _ in self._busy.values():
            worker.process.terminate()
        for worker in workers:
            worker.stop()


class _Worker:
    """A process and this end of the pipe to it."""

    def __init__(self, context: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def stop(self) -> None:
        self.connection.close()
        self.process.join(_PATIENCE)
        self.process.kill()


def _serve(connection: Connection) -> None:
    """Do what comes through the pipe, until it ends. What nobody explained ends the process."""
    # Ctrl-C reaches all processes of a terminal; the one that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    transformers.utils.logging.disable_progress_bar()  # many workers, one terminal
    while True:
        try:
            task, store = connection.recv()
        except EOFError:
            return
        refused = attempt(task, store)
        with suppress(BrokenPipeError):  # nobody listens any more, which the next line to be read says
            connection.send(refused)


class RayWorkers(Workers):
    """Processes of a Ray cluster: the one at RAY_ADDRESS, or a new one on this machine.

    On several machines the results' folder and the data must be at the same place on all of them.
    """

    def __init__(self, size: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise BadInput('--ray: Ray is not installed; pip install "dreamvideo[ray]"') from error
        self.size = size
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own and "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False)
        elif self._own:
            ray.init(num_cpus=size, include_dashboard=False, log_to_driver=False)
        # How often a task is tried is not Ray's to decide.
        self._attempt = ray.remote(max_retries=0)(attempt)
        self._attempt_alone = ray.remote(max_retries=0, max_calls=1)(attempt)
        self._busy: dict[Any, Task] = {}

    def start(self, task: Task, store: Store) -> None:
        call = self._attempt_alone if task.alone else self._attempt
        self._busy[call.remote(task, store)] = task

    def ended(self) -> Iterator[Outcome]:
        ready, _ = self._ray.wait(list(self._busy))
        for reference in ready:
            task = self._busy.pop(reference)
            try:
                yield Outcome(task, refused=self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                yield Outcome(task, died=str(error).strip().splitlines()[-1])

    def close(self) -> None:
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        if self._own:
            self._ray.shutdown()
