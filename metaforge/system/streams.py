"""The standard streams: notes on stderr never end a run, and nothing but the answer of a command is on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TextIO, cast


class NoteStream:
    """A text stream that passes text on to another one and drops what that one cannot take.

    Notes and progress are for a person: a full disk, a terminal that is gone or a closed stream must not end a run.

    Args:
        stream: The stream, such as `sys.stderr`; None, as Python has it where a stream is closed, drops everything.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text as far as possible; return its length."""
        if self._stream is not None:
            # A closed stream raises `ValueError`.
            with suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream as far as possible."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def close(self) -> None:
        """Flush the stream and leave it open: others print to it too."""
        self.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def note_stream() -> TextIO:
    """Return a stream that writes to stderr and never fails: what stderr cannot take is dropped.

    Hooks print notes for the user to it. If they printed to `sys.stderr` itself, a full disk could end the run.

    Returns:
        A text stream on the present `sys.stderr`.

    Example:
        >>> from metaforge.authoring import note_stream
        >>> print("The learning rate was halved.", file=note_stream())
    """
    return cast(TextIO, sys.stderr if isinstance(sys.stderr, NoteStream) else NoteStream(sys.stderr))


@contextlib.contextmanager
def best_effort_stderr() -> Iterator[None]:
    """Let everything that prints to `sys.stderr` inside the block do so on a `NoteStream`."""
    before, sys.stderr = sys.stderr, note_stream()
    try:
        yield
    finally:
        sys.stderr = before


def open_standard_streams() -> None:
    """Replace each standard stream that is closed by the null device.

    Without this, `print` with a missing `sys.stderr` would print to stdout.
    """
    reopen_descriptors()
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def reopen_descriptors() -> None:
    """Open the null device on each of the file descriptors 0, 1 and 2 that is closed.

    Otherwise the next file that is opened would get that descriptor, and what others print would be written into it.
    """
    for descriptor in range(3):
        try:
            # The cheapest call that fails for a closed descriptor: hooks are followed by this function.
            os.get_inheritable(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            # It may have got that descriptor, which child processes then must inherit.
            os.dup2(null, descriptor)
            os.set_inheritable(descriptor, True)
            if null != descriptor:
                os.close(null)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what Python code, C code and child processes print: stdout is for the output of the command."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        # Either file descriptor may be closed; then C code and child processes stay as they are.
        with suppress(OSError):
            stdout = os.dup(1)
            stack.callback(os.close, stdout)
            os.dup2(2, 1)
            stack.callback(os.dup2, stdout, 1)
        yield
