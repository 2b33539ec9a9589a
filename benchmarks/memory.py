"""How much memory a process took; it imports nothing that would take any itself."""

from __future__ import annotations

from pathlib import Path


def peak_mib(process: str = "self") -> float:
    """Return the most memory in MiB that a process ever held, on Linux.

    Raises `OSError` or `ValueError` where that cannot be known, as of a process that has ended.
    """
    # Not what `getrusage` says: Linux hands that on from the process that started this one.
    lines = Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
