"""SIGTERM and SIGINT as a flag: a run ends at a step boundary, with what it has learned saved."""

from __future__ import annotations

import math
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


class Patience:
    """Notices a signal that comes soon after the one before."""

    def __init__(self) -> None:
        self._since = -math.inf

    def is_lost(self) -> bool:
        """Return whether the last call was less than two seconds ago."""
        before, self._since = self._since, time.monotonic()
        return self._since - before < _IMPATIENT


class Requests:
    """What the process was asked to do; read at step boundaries.

    Until a loop reads `number` (`with requests.deferred()`), a request interrupts whatever runs, as Ctrl-C always did;
    once one has interrupted the run, which then ends in order, later ones are only noted.
    """

    def __init__(self, *, impatient: bool) -> None:
        self._impatient, self._patience = impatient, Patience()
        self.number: int | None = None
        self._deferred = self._raised = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only take note of requests inside: the code there looks at `number` where it can end.

        One that came after its last look interrupts when the block has ended.
        """
        self._deferred = True
        try:
            yield
        except Interrupted:
            self._raised = True
            raise
        finally:
            self._deferred = False
        self._interrupt()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._patience.is_lost() and self._impatient and number == signal.SIGINT:
            os._exit(_CODES[signal.SIGINT])
        self.number = number if self.number is None else self.number
        if not self._deferred:
            self._interrupt()

    def _interrupt(self) -> None:
        if self.number is not None and not self._raised:
            self._raised = True
            raise Interrupted(self.number)


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
