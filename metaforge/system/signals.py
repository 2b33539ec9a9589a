"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP as requests to stop, so that a run saves its state before it ends."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGHUP.
_EXIT_CODES = {
    signal.Signals[name]: code
    for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129))
    if name in signal.Signals.__members__
}
# The longest time in seconds between two Ctrl-C that together end the process at once.
_DOUBLE_PRESS = 2.0


def hangup_is_ignored() -> bool:
    """Return whether this process ignores SIGHUP, as `nohup` makes it do, or the system has no such signal."""
    return not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


class Interrupted(KeyboardInterrupt):
    """The process received SIGINT (`exit_code` 130), SIGTERM (143) or SIGHUP (129)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = _EXIT_CODES[signal.Signals(number)]


class DoublePressDetector:
    """Detects a signal that follows another within two seconds, such as Ctrl-C pressed twice."""

    def __init__(self) -> None:
        self._last = -math.inf

    def is_double_press(self) -> bool:
        """Record a signal, and return whether the one before came less than two seconds ago."""
        previous, self._last = self._last, time.monotonic()
        return self._last - previous < _DOUBLE_PRESS


class StopRequests:
    """The requests to stop that the process has received.

    A signal raises `Interrupted` in the main thread, as Ctrl-C does in any Python program, except in two cases: inside
    `with requests.record_only():` it is only recorded, and after the first `Interrupted` later signals do not disturb
    the orderly end of the run.

    Args:
        exit_on_second: Whether a Ctrl-C within two seconds of another signal ends the process at once, unsaved.

    Attributes:
        number: The first signal received, or None.
    """

    def __init__(self, *, exit_on_second: bool) -> None:
        self._exit_on_second, self._detector = exit_on_second, DoublePressDetector()
        self.number: int | None = None
        self._recording = self._raised = False

    @contextmanager
    def record_only(self) -> Iterator[None]:
        """Only record signals in `number` inside the block, for a loop that checks `number` after each step.

        A signal that arrives after the last check raises `Interrupted` at the end of the block.
        """
        self._recording = True
        try:
            yield
        except Interrupted:
            self._raised = True
            raise
        finally:
            self._recording = False
        self._raise_once()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; this is the handler that `stop_requests` installs."""
        if self._detector.is_double_press() and self._exit_on_second and number == signal.SIGINT:
            os._exit(_EXIT_CODES[signal.SIGINT])
        if self.number is None:
            self.number = number
        if not self._recording:
            self._raise_once()

    def _raise_once(self) -> None:
        if self.number is not None and not self._raised:
            self._raised = True
            raise Interrupted(self.number)


@contextmanager
def stop_requests(*, exit_on_second: bool = True) -> Iterator[StopRequests]:
    """Handle SIGTERM, SIGINT and SIGHUP inside the block, and restore the previous handlers afterwards.

    An ignored SIGHUP stays ignored: `nohup` starts a process so that it outlives its terminal. Python delivers signals
    to the main thread only, so in any other thread this changes nothing. Pass `exit_on_second=False` where a launcher
    forwards Ctrl-C: the process may then receive one Ctrl-C twice.
    """
    requests = StopRequests(exit_on_second=exit_on_second)
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    handled = [number for number in _EXIT_CODES if not (number.name == "SIGHUP" and hangup_is_ignored())]
    before = {number: signal.signal(number, requests.receive) for number in handled}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
