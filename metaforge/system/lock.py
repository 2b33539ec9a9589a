"""The lock of a run folder: one process writes it at a time, and the lock names that process."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from metaforge.errors import RunLockedError
from metaforge.system.files import write_errors
from metaforge.system.untrusted import parse_json

try:
    import fcntl
except ImportError:  # pragma: no cover - not a POSIX system: only the record of the holder is left
    fcntl = None  # type: ignore[assignment]

# The errors of a file system that has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RunLock:
    """An exclusive lock on a run folder, held from construction to `release`.

    It has two parts: `flock` on the file `run.lock`, and a JSON record of the holder in that file. The system frees
    the `flock` when its holder dies, so the lock of a dead process is taken over. The record decides in two cases:
    where it names another machine, because a network file system may not share `flock` between machines, and where the
    file system has no `flock`; there the lock is taken over once no process of that number exists.

    Args:
        folder: The run folder.

    Raises:
        RunLockedError: Another process holds the lock; the message names it.
        StorageError: The lock file cannot be written, or is a symbolic link.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        with write_errors(folder):
            # No symbolic link is followed: one in an untrusted run folder could lead to a file of the user's.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._file: IO[bytes] = open(os.open(self.path, flags, 0o666), "a+b", buffering=0)  # noqa: SIM115
        try:
            self._acquire()
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Free the lock; do nothing if it is free already."""
        if not self._file.closed:
            self._write("")
            self._file.close()

    def _acquire(self) -> None:
        locked = self._flock()
        holder = self._holder()
        if holder and (holder.get("host") != platform.node() or not (locked or _is_dead(holder))):
            raise self._locked_error(holder)
        record = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self._write(json.dumps(record | {"boot": _boot_id()}))

    def _flock(self) -> bool:
        """Return True with the `flock`, False where the system has none; raise `RunLockedError` if it is taken."""
        if fcntl is None:
            return False
        with write_errors(self.path):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._locked_error(self._holder()) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return False
        return True

    def _holder(self) -> dict[str, object]:
        """Return the record in the lock file; an empty one where the file holds no valid record."""
        self._file.seek(0)
        try:
            record = parse_json(self._file.read(4096) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write(self, text: str) -> None:
        with write_errors(self.path, len(text)):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text.encode())

    def _locked_error(self, holder: dict[str, object]) -> RunLockedError:
        process = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
        return RunLockedError(
            f"The run is being written by {process}.",
            where=str(self.path.parent),
            remedy=f"wait until that process ends, or stop it; if it surely does not exist, remove {self.path.name}",
        )


def _is_dead(holder: Mapping[str, object]) -> bool:
    """Return whether a holder on this machine no longer exists: the machine was restarted, or the number is free."""
    pid = holder.get("pid")
    if os.name != "posix" or not isinstance(pid, int) or pid < 1:
        return False
    if holder.get("boot", "") != _boot_id():
        return True
    try:
        # Signal 0 is not sent: the call only checks that the process exists.
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # The process exists and belongs to another user.
    return False


def _boot_id() -> str:
    """Return the identifier that Linux draws at each start of the machine; an empty string on other systems."""
    return _BOOT_ID.read_text("utf-8").strip() if _BOOT_ID.is_file() else ""
