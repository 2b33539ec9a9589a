"""What this machine offers: device, threads, and an allocator that keeps the memory which every step needs again."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

from metaforge.errors import ConfigError, nearest

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def choose_device(name: str, index: int = 0) -> torch.device:
    """Return the device of that name, number `index` of several; `auto` means CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    usable = f"use one of: auto, {', '.join(key for key, there in available.items() if there)}"
    if name not in available:
        raise ConfigError(f"There is no device {name!r}.{nearest(name, available)}", where="device", remedy=usable)
    if not available[name]:
        raise ConfigError(f"No {name} device is available here.", where="device", remedy=usable)
    if name == "cuda" and index >= torch.cuda.device_count():
        raise ConfigError(
            f"Process {index} of this machine has no GPU of its own: there are {torch.cuda.device_count()}.",
            where="device",
            remedy="start as many processes as there are GPUs",
        )
    return torch.device(name, index) if index and name == "cuda" else torch.device(name)


def prepare(threads: int | None) -> None:
    """Set the number of CPU threads, and let glibc keep freed activations instead of mapping new pages each step."""
    if threads is not None:
        torch.set_num_threads(threads)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, without which no step can be compiled for a CPU."""
    return shutil.which("g++") is not None


def facts() -> dict[str, str | int | bool]:
    """Return what a reader of results must know of the machine and the versions."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else False,
    }


def _processor() -> str:
    """Return the processor's name as Linux tells it, elsewhere as Python knows it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
