"""The machine: its devices, its CPU cores, the settings of its memory allocator, and the facts that a run records."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

from metaforge.errors import ConfigError, nearest

# Parameters of glibc's `mallopt`, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def choose_device(name: str, index: int = 0) -> torch.device:
    """Return a device; raise `ConfigError` if this machine does not have it.

    `name` is `cpu`, `cuda`, `mps`, or `auto`: CUDA where it is available, else the CPU. `index` is the number of the
    GPU; a process of a distributed run passes its local rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    remedy = f"use one of: auto, {', '.join(device for device, usable in available.items() if usable)}"
    if name not in available:
        raise ConfigError(f"There is no device {name!r}.{nearest(name, available)}", where="device", remedy=remedy)
    if not available[name]:
        raise ConfigError(f"No {name} device is available on this machine.", where="device", remedy=remedy)
    if name == "cuda" and index >= torch.cuda.device_count():
        raise ConfigError(
            f"There is no GPU for process {index} (counted from 0): this machine has {torch.cuda.device_count()}.",
            where="device",
            remedy="start at most one process per GPU",
        )
    return torch.device(name, index) if index and name == "cuda" else torch.device(name)


def prepare(threads: int | None) -> None:
    """Set the number of CPU threads (None: torch's own), and make glibc reuse freed memory.

    By default glibc returns large freed blocks to the system, so that every step would map the pages of its activations
    anew. Thresholds of 1 and 2 GiB keep these blocks in the process.
    """
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
    """Return whether there is a C++ compiler, which torch.compile needs for a CPU."""
    return shutil.which("g++") is not None


def facts() -> dict[str, str | int | bool]:
    """Return the versions of Python and torch, and what of the machine bears on results and timings."""
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
    """Return the model name of the processor from `/proc/cpuinfo`, or what Python reports on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
