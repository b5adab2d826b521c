"""Weights that their makers publish as PyTorch files, from the user's disk."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from dreamvideo.errors import BadFile, MissingWeights

__all__ = ["read"]


def read(path: str | Path, *, source: str) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing that it holds is run.

    Args:
        source: where the file can be had.

    Raises:
        MissingWeights: no such file.
        BadFile: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; it can be had at {source}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise BadFile(f"{path}: not a PyTorch file of tensors, or a broken one") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise BadFile(f"{path}: holds something other than tensors by name")
    return tensors
