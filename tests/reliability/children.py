"""Run commands and functions in child processes, so that a row can kill them, interrupt them or limit their storage.

By default they are forked from a server that has already imported torch and MetaForge, so that hundreds of them take
minutes; with `fresh`, a new interpreter runs `python -m metaforge`, as a shell does.
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
    """A running `metaforge` command; its stdout and stderr go into one log file."""

    def __init__(self, arguments: Sequence[str], log: Path, *, fresh: bool = False) -> None:
        self.log = log
        # The server takes its environment from this process when it starts.
        os.environ.update(_ONE_THREAD)
        if fresh:
            with log.open("w") as file:
                command = [sys.executable, "-m", "metaforge", *arguments]
                self._popen = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
            self.pid, self._process = self._popen.pid, None
        else:
            self._process = _FORKS.Process(target=_run_main, args=(list(arguments), str(log)))
            self._process.start()
            assert self._process.pid is not None
            self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; negative after a signal, None while the command runs."""
        return self._popen.poll() if self._process is None else self._process.exitcode

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code; kill a command that takes longer, and raise `TimeoutError`."""
        deadline = time.monotonic() + seconds
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"it did not end within {seconds} s: {self.output()[-300:]}")
            time.sleep(0.005)
        return code

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Wait until a condition holds, the command ends or the time is over; return whether the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.code is not None or time.monotonic() > deadline:
                return condition()
            time.sleep(0.002)
        return True

    def send(self, number: int) -> None:
        """Send a signal, if the command still runs."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def output(self) -> str:
        """Return what the command has printed so far."""
        return self.log.read_text("utf-8", errors="replace") if self.log.is_file() else ""


@contextmanager
def running(arguments: Sequence[str], log: Path, *, fresh: bool = False) -> Iterator[Child]:
    """Start a command, and kill it at the end of the block if it still runs."""
    child = Child(arguments, log, fresh=fresh)
    try:
        yield child
    finally:
        child.send(signal.SIGKILL)
        child.wait()


def run_command(arguments: Sequence[str], log: Path, *, seconds: float = 120.0) -> tuple[int, str]:
    """Run a command to its end, and return its exit code and its output."""
    with running(arguments, log) as child:
        return child.wait(seconds), child.output()


def run_successfully(arguments: Sequence[str], log: Path) -> str:
    """Run a command and return its output; raise `RuntimeError` if it fails."""
    code, output = run_command(arguments, log)
    if code:
        raise RuntimeError(f"exit code {code}: {output[-300:]}")
    return output


def call_in_process(
    function: Callable[..., None], *arguments: Any, log: Path, seconds: float = 120.0
) -> tuple[int, str]:
    """Call a function in a child process, and return the exit code and the output."""
    os.environ.update(_ONE_THREAD)
    process = _FORKS.Process(target=_call, args=(function, arguments, str(log)))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{function.__name__} did not end within {seconds} s")
    return process.exitcode, log.read_text("utf-8", errors="replace")


def pid_of_rank(out: Path, rank: int) -> int:
    """Return the process id of a rank of the run in the folder `out`; raise `ProcessLookupError` if there is none."""
    for entry in Path("/proc").iterdir():
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdecimal() and str(out).encode() in command and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise ProcessLookupError(f"there is no process of rank {rank}")


def redirect(log: str) -> None:
    """Send stdout and stderr of this process to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _run_main(arguments: list[str], log: str) -> None:
    from metaforge.cli.app import main

    redirect(log)
    # A shell that runs the campaign in the background makes its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["metaforge", *arguments]
    main()


def _call(function: Callable[..., None], arguments: Sequence[Any], log: str) -> None:
    redirect(log)
    function(*arguments)
