"""What this machine can run."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import av.codec
import torch

__all__ = ["Finding", "examine"]

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "av", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    fine: bool
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at the interpreter, the libraries, the devices, the encoders and the room on disk."""
    findings = [Finding("python", True, platform.python_version())]
    for library in _LIBRARIES:
        try:
            findings.append(Finding(library, True, version(library)))
        except PackageNotFoundError:
            findings.append(Finding(library, False, "missing", f"pip install {library}"))
    findings.append(_accelerator())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    findings.append(Finding("processor", True, f"{os.cpu_count()} cores, {_gib(memory)} of memory"))
    for codec in ("libx264", "gif"):
        there = codec in av.codec.codecs_available
        findings.append(Finding(f"encoder {codec}", there, "there" if there else "missing", "pip install --upgrade av"))
    free = shutil.disk_usage(".").free
    findings.append(Finding("disk", free > 2**30, f"{_gib(free)} free here", "make room: a run keeps its checkpoints"))
    return findings


def _accelerator() -> Finding:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding("accelerator", True, f"{torch.cuda.get_device_name()}, {_gib(free)} of {_gib(total)} free")
    if torch.backends.mps.is_available():
        return Finding("accelerator", True, "Apple MPS")
    remedy = "bases of full size want one; see pytorch.org for a build of torch for yours"
    return Finding("accelerator", False, "none", remedy)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
