"""Options that commands of several files share."""

from typing import Annotated

import typer

__all__ = ["Device", "Json"]

Device = Annotated[str, typer.Option(help="cpu, cuda, mps; auto takes the accelerator where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of sentences.")]
