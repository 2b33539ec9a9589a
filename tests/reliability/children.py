"""Commands in processes of their own, to be killed, stopped and starved.

They are forked from a server that has imported everything, so that hundreds of them take minutes; with `fresh`, a new
interpreter runs `python -m metaforge`, as a user's shell does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    # torch imports its compiler when the first optimiser is made.
    [
        "metaforge.cli.app",
        "metaforge.runs.training",
        "metaforge.results.run_pictures",
        "tests.reliability.small_runs",
        "torch._dynamo",
    ]
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Child:
    """A running command; its words for people and its answer go into one file."""

    def __init__(self, words: Sequence[str], output: Path, *, fresh: bool = False) -> None:
        self.output = output
        # The server gets its environment when it starts.
        os.environ.update(_ONE_THREAD)
        if fresh:
            with output.open("w") as file:
                line = [sys.executable, "-m", "metaforge", *words]
                self._popen = subprocess.Popen(line, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
            self.pid, self._process = self._popen.pid, None
        else:
            self._process = _FORKS.Process(target=_command, args=(list(words), str(output)))
            self._process.start()
            assert self._process.pid is not None
            self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; negative after a signal, None while it runs."""
        return self._popen.poll() if self._process is None else self._process.exitcode

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code; a command that takes longer is killed, and `TimeoutError` raised."""
        deadline = time.monotonic() + seconds
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"it did not end within {seconds} s: {self.said()[-300:]}")
            time.sleep(0.005)
        return code

    def wait_for(self, happened: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Wait until something has happened; return False if the command ends before."""
        deadline = time.monotonic() + seconds
        while not happened():
            if self.code is not None or time.monotonic() > deadline:
                return happened()
            time.sleep(0.002)
        return True

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def said(self) -> str:
        """Return what it has printed."""
        return self.output.read_text("utf-8", errors="replace") if self.output.is_file() else ""


@contextmanager
def running(words: Sequence[str], output: Path, *, fresh: bool = False) -> Iterator[Child]:
    """Run a command inside; it does not outlive the block."""
    child = Child(words, output, fresh=fresh)
    try:
        yield child
    finally:
        child.send(signal.SIGKILL)
        child.wait()


def finish(words: Sequence[str], output: Path, *, seconds: float = 120.0) -> tuple[int, str]:
    """Run a command to its end, and return its exit code and what it said."""
    with running(words, output) as child:
        return child.wait(seconds), child.said()


def call(function: Callable[..., None], *arguments: Any, output: Path, seconds: float = 120.0) -> tuple[int, str]:
    """Call a function in a process of its own, and return the exit code and what it said."""
    os.environ.update(_ONE_THREAD)
    process = _FORKS.Process(target=_called, args=(function, arguments, str(output)))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{function.__name__} did not end within {seconds} s")
    return process.exitcode, output.read_text("utf-8", errors="replace")


def worker(out: Path, rank: int) -> int:
    """Return the process that has this number in the run of a folder."""
    for entry in Path("/proc").iterdir():
        try:
            words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdecimal() and str(out).encode() in words and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise ProcessLookupError(f"there is no process {rank}")


def _command(words: list[str], output: str) -> None:
    from metaforge.cli.app import main

    _redirect(output)
    # A shell that starts the campaign in the background has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["metaforge", *words]
    main()


def _called(function: Callable[..., None], arguments: Sequence[Any], output: str) -> None:
    _redirect(output)
    function(*arguments)


def _redirect(output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
