"""PyTorch checkpoints as data: read without running what they hold, written whole or not at all."""

import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamvideo.errors import BadFile
from dreamvideo.files import whole

__all__ = ["naming", "read_data", "read_tensors", "tensors_of", "write_checkpoint", "write_data"]

# What PyTorch's reader lets out when the bytes of a checkpoint are cut off or overwritten.
_BROKEN = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


def read_data(path: str | Path) -> Any:
    """What a `.pth`, `.pt`, `.bin` or `.safetensors` file holds: tensors in plain containers.

    Pickles are read by PyTorch's weights-only reader, which builds tensors and containers and nothing else. The
    one class allowed beyond its own is `nn.ParameterDict`, in which the official code saves words.

    Raises:
        BadFile: no such file, broken, or it holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise BadFile(f"{path}: not a safetensors file, or only a part of one ({error})") from error
    # Older checkpoints are bare pickles, which other ways lead into; the official code never wrote one.
    if not zipfile.is_zipfile(path):
        raise BadFile(f"{path}: not a checkpoint of PyTorch 1.6 or later, or only a part of one")
    try:
        with torch.serialization.safe_globals([nn.ParameterDict]):
            code = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            # Memory-mapped, because a base is 5.6 GB: each tensor is read when it is used.
            data = None if code else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _BROKEN as error:
        raise BadFile(f"{path}: not a PyTorch checkpoint of tensors, or a broken one") from error
    if code:
        raise BadFile(f"{path}: holds code ({', '.join(sorted(code))}) and is refused; only tensors are read")
    return _plain(data)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of a flat checkpoint or of `{"state_dict": ..., "step": ...}` by name, and the step if it says one.

    Raises:
        BadFile: as `read_data`; or it holds something other than tensors by name.
    """
    data = read_data(path)
    with naming(path):
        return tensors_of(data)


def tensors_of(data: Any) -> tuple[dict[str, Tensor], int | None]:
    """What `read_tensors` returns, of data that is read already.

    Raises:
        BadFile: it is something other than tensors by name.
    """
    step = None
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        step = data.get("step")
        data = data["state_dict"]
    if not isinstance(data, dict) or not data:
        raise BadFile(f"holds {type(data).__name__} where tensors by name were expected")
    for name, tensor in data.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise BadFile(f"entry {name!r} is {type(tensor).__name__} where a tensor was expected")
    return data, step if isinstance(step, int) else None


def write_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], *, step: int) -> None:
    """Write `{"state_dict": ..., "step": ...}`, the form that every official loader reads."""
    write_data(path, {"state_dict": dict(tensors), "step": step})


def write_data(path: str | Path, data: Any) -> None:
    """Write a pickle of tensors in plain containers, whole or not at all."""
    with whole(path) as draft:
        torch.save(data, draft)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name before what the block finds wrong with its contents."""
    try:
        yield
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    """The same data without modules and parameters."""
    if isinstance(value, nn.ParameterDict):
        # Not through its methods: what a hostile file put into its state decides what they do.
        value = vars(value).get("_parameters")
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return value.detach() if isinstance(value, Tensor) else value
