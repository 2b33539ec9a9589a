"""Make one file operation of this process fail: the functions that change the storage are replaced by counting ones."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("SIGKILL", "exception", "ENOSPC")


class Faults:
    """Counts the operations that change the storage, and makes the operation with index `point` fail.

    A write fails after half of its bytes. The replaced functions are not restored: use it in a child process.
    """

    def __init__(self, point: int | None = None, kind: str = "") -> None:
        self.point, self.kind = point, kind
        self.seen: list[str] = []

    def install(self) -> Faults:
        """Replace the functions, and return these faults."""
        for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (shutil, "rmtree")):
            setattr(module, name, self._counted(getattr(module, name), name))
        original_open = io.open

        def counted_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "r" in mode:
                return original_open(file, mode, *arguments, **options)
            self._count(f"open {Path(file).name}")
            return _CountedFile(original_open(file, mode, *arguments, **options), Path(file).name, self)

        io.open = counted_open
        return self

    def _counted(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(target: Any, *arguments: Any, **options: Any) -> Any:
            operation = f"{name} {_name_of(target)}"
            try:
                self._count(operation)
            except OSError:
                if options.get("ignore_errors"):
                    return None
                raise
            return original(target, *arguments, **options)

        return counted

    def _count(self, operation: str, write_half: Callable[[], object] = lambda: None) -> None:
        """Count an operation, and fail if it is the chosen one."""
        self.seen.append(operation)
        if self.point != len(self.seen) - 1:
            return
        write_half()
        if self.kind == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "exception":
            raise RuntimeError(f"made to fail at: {operation}")
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number), operation)


class _CountedFile:
    """A file open for writing whose writes are counted."""

    def __init__(self, file: Any, name: str, faults: Faults) -> None:
        self._file, self._name, self._faults = file, name, faults

    def write(self, data: Any) -> Any:
        def write_half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._faults._count(f"write {self._name}", write_half)
        return self._file.write(data)

    def __enter__(self) -> _CountedFile:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _name_of(target: Any) -> str:
    """Return the file name of a path or of an open file descriptor."""
    return Path(os.readlink(f"/proc/self/fd/{target}")).name if isinstance(target, int) else Path(target).name
