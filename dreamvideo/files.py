"""Files that are written whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dreamvideo.errors import BadInput

__all__ = ["whole", "write_json", "write_text"]


@contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """Give a temporary path to write; when the block ends well, it becomes `target` in one step.

    The temporary path lies in the same folder and keeps the suffix of `target`, because encoders choose a
    format by it. It may be made a file or a folder. If the block raises, nothing remains and what was at
    `target` is untouched.

    Raises:
        BadInput: the folder cannot be written.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.stem[:40]}-", dir=target.parent))
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror}); choose another place") from error
    try:
        draft = room / target.name
        (room / "plain").touch()
        try:
            yield draft
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{target}: cannot be written ({error}); make room, or choose another place") from error
        if draft.is_dir():
            if target.is_dir():
                os.replace(target, room / "replaced")
        else:
            with open(draft, "rb") as written:
                os.fsync(written.fileno())
            # Some libraries write for the owner's eyes only; a result is a file like any other.
            os.chmod(draft, (room / "plain").stat().st_mode)
        os.replace(draft, target)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_text(target: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with whole(target) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
