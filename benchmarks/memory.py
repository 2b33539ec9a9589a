"""The peak memory of a process; this module imports nothing that would itself need memory."""

from __future__ import annotations

from pathlib import Path


def peak_mib(process: str = "self") -> float:
    """Return the peak resident memory of a process in MiB, on Linux.

    Raises `OSError` or `ValueError` if it cannot be read, for example because the process has ended.
    """
    # Not `getrusage`: on Linux its maximum includes that of the parent at the time of the fork.
    lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
