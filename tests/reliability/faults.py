"""Failures of the storage at a chosen operation: in a process of its own, what Python calls to write is replaced."""

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
    """Counts the operations that change the storage, and fails instead of one of them.

    A write fails after half of its bytes. Made once in a process, which ends with it.
    """

    def __init__(self, point: int | None = None, kind: str = "") -> None:
        self.point, self.kind = point, kind
        self.seen: list[str] = []

    def install(self) -> Faults:
        """Replace the functions, and return these faults."""
        for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (shutil, "rmtree")):
            setattr(module, name, self._before(getattr(module, name), name))
        opened = io.open

        def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "r" in mode:
                return opened(file, mode, *arguments, **options)
            self._reach(f"open {Path(file).name}")
            return _Written(opened(file, mode, *arguments, **options), Path(file).name, self)

        io.open = opening
        return self

    def _before(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(what: Any, *arguments: Any, **options: Any) -> Any:
            told = _name_of(what)
            try:
                self._reach(f"{name} {told}")
            except OSError:
                if options.get("ignore_errors"):
                    return None
                raise
            return original(what, *arguments, **options)

        return called

    def _reach(self, what: str, half: Callable[[], object] = lambda: None) -> None:
        self.seen.append(what)
        if self.point != len(self.seen) - 1:
            return
        half()
        if self.kind == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "exception":
            raise RuntimeError(f"made to fail at: {what}")
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number), what)


class _Written:
    """A file open for writing."""

    def __init__(self, file: Any, name: str, faults: Faults) -> None:
        self._file, self._name, self._faults = file, name, faults

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._faults._reach(f"write {self._name}", half)
        return self._file.write(data)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _name_of(what: Any) -> str:
    return Path(os.readlink(f"/proc/self/fd/{what}")).name if isinstance(what, int) else Path(what).name
