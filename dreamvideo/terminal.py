"""What the commands print: a progress bar on standard error; JSON, indented lines and tables on standard output."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from tqdm import tqdm

__all__ = ["bar", "leads", "outline", "say", "table"]


def leads() -> bool:
    """Whether this process is the one of its run that speaks; `torchrun` numbers them."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def bar() -> Iterator[Callable[[str, int, int, str], None]]:
    """A progress bar with the time left, on standard error; `advance(stage, done, total, remark)`."""
    shown, current = None, ""

    def advance(stage: str, done: int, total: int, remark: str) -> None:
        nonlocal shown, current
        if shown is None or stage != current:
            if shown is not None:
                shown.close()
            current = stage
            # In a log file a line every half a minute is enough.
            often = 0.1 if sys.stderr.isatty() else 30
            how = {"unit": "step", "dynamic_ncols": True, "mininterval": often, "disable": not leads()}
            shown = tqdm(desc=stage, total=total, initial=done - 1, **how)
        shown.set_postfix_str(remark, refresh=False)
        shown.update()

    try:
        yield advance
    finally:
        if shown is not None:
            shown.close()


def say(value: Any, text: str, *, as_json: bool) -> None:
    """Print the value as JSON, or else the text."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, default=str))
    else:
        typer.echo(text)


def outline(value: Any, indent: str = "") -> Iterator[str]:
    """Nested plain data as indented lines; what is empty is left out."""
    for name, item in value.items():
        if isinstance(item, dict):
            yield f"{indent}{name}"
            yield from outline(item, indent + "  ")
        elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
            yield f"{indent}{name}"
            for part in item:
                first, *rest = outline(part)
                yield f"{indent}- {first}"
                yield from (f"{indent}  {line}" for line in rest)
        elif isinstance(item, (list, tuple)):
            if item:
                yield f"{indent}{name}: {', '.join(map(str, item))}"
        elif item is not None:
            yield f"{indent}{name}: {item}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns as wide as their widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
