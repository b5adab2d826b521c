"""Stopping at a good moment: a signal becomes a flag."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stopping"]


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Inside the block the first SIGINT or SIGTERM only makes the given function true; a second one acts as usual."""
    came: list[int] = []
    before = {}

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])

    # Python lets only the main thread handle signals; a run on another thread is stopped by that thread's owner.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, remember)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
