"""SIGTERM and SIGINT as a flag: a run ends at a step boundary, with what it has learned saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# A second Ctrl-C within this time means: leave now, saved or not.
_IMPATIENT = 2.0


class Interrupted(KeyboardInterrupt):
    """The process was asked to end; `exit_code` is 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = _CODES[signal.Signals(number)]


class Requests:
    """What the process was asked to do; read at step boundaries.

    Until a loop reads `number` (`with requests.deferred()`), a request interrupts whatever runs, as Ctrl-C always did.
    """

    def __init__(self, *, impatient: bool) -> None:
        self._impatient = impatient
        self.number: int | None = None
        self._deferred = False
        self._since = 0.0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only take note of requests inside: the code there looks at `number` where it can end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        again = self.number is not None and number == signal.SIGINT
        if self._impatient and again and now - self._since < _IMPATIENT:
            os._exit(_CODES[signal.SIGINT])
        first = self.number is None
        self.number = number if first else self.number
        self._since = now
        if first and not self._deferred:
            raise Interrupted(number)


@contextmanager
def requests(*, impatient: bool = True) -> Iterator[Requests]:
    """Receive SIGTERM and SIGINT inside; in another thread than the main one, where none arrive, nothing changes.

    Unless `impatient`, a second Ctrl-C does not leave at once: a launcher may pass on the one that arrived here too.
    """
    found = Requests(impatient=impatient)
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found.receive) for number in _CODES}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
