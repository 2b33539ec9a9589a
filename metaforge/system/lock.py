"""One writer per run: a lock that names its holder and does not outlive it."""

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
except ImportError:  # pragma: no cover - not a POSIX system: the record of the holder is all there is
    fcntl = None  # type: ignore[assignment]

# What a file system without locks says.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class RunLock:
    """The right to write a run folder; `RunLockedError` names who has it.

    The system gives the lock back when its holder dies, so a dead holder's is recovered. On file systems of several
    machines, where the system's locks may mean nothing, the record of a holder on another machine is believed; where
    there are none, that of a process which is still there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        with write_errors(folder):
            # Never through a link: a stranger's run folder must not say which file is emptied.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._file: IO[bytes] = open(os.open(self.path, flags, 0o666), "a+b", buffering=0)  # noqa: SIM115
        try:
            self._acquire()
        except BaseException:
            self._file.close()
            raise

    def _acquire(self) -> None:
        locked = self._locked()
        holder = self._holder()
        if holder and (holder.get("host") != platform.node() or not (locked or _dead(holder))):
            raise self._held(holder)
        mine = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self._write(json.dumps(mine | {"boot": _boot()}))

    def _locked(self) -> bool:
        """Take the system's lock, and return whether it has any; raise `RunLockedError` where another has it."""
        if fcntl is None:
            return False
        with write_errors(self.path):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._held(self._holder()) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return False
        return True

    def release(self) -> None:
        """Give the lock back."""
        if not self._file.closed:
            self._write("")
            self._file.close()

    def _holder(self) -> dict[str, object]:
        self._file.seek(0)
        try:
            found = parse_json(self._file.read(4096) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, text: str) -> None:
        with write_errors(self.path, len(text)):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text.encode())

    def _held(self, holder: dict[str, object]) -> RunLockedError:
        said = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
        return RunLockedError(
            f"The run is being written by {said}.",
            where=str(self.path.parent),
            remedy=f"wait until it ends, or stop it; if it is surely dead, remove {self.path.name}",
        )


def _dead(holder: Mapping[str, object]) -> bool:
    """Return whether a holder on this machine is surely gone: since the last start, or by its number."""
    pid = holder.get("pid")
    if os.name != "posix" or not isinstance(pid, int) or pid < 1:
        return False
    if holder.get("boot", "") != _boot():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # Somebody else's, and there.
    return False


def _boot() -> str:
    """Return what Linux calls the time since the machine was started, an empty text elsewhere."""
    return _BOOT.read_text("utf-8").strip() if _BOOT.is_file() else ""
