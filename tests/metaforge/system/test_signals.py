"""Signals are noted, and end a run where it can end; impatience ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any

import pytest

from metaforge.system import signals
from metaforge.system.signals import Interrupted, StopRequests, stop_requests


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_interrupts_until_a_loop_asks_for_it(number: signal.Signals, code: int) -> None:
    with stop_requests() as asked:
        with pytest.raises(Interrupted, match=number.name) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.exit_code == code
        assert asked.number == number


def asked_in_a_loop(asked: StopRequests, *numbers: int) -> list[int | None]:
    """Return what a loop that is sent these signals sees, which looks after each."""
    seen = []
    with suppress(Interrupted), asked.record_only():
        for number in numbers:
            os.kill(os.getpid(), number)
            seen.append(asked.number)
    return seen


def test_inside_a_loop_it_is_only_noted_and_the_first_one_counts() -> None:
    with stop_requests(exit_on_second=False) as asked:
        assert asked_in_a_loop(asked, signal.SIGTERM, signal.SIGINT) == [signal.SIGTERM] * 2


def end(asked: StopRequests, *, looked: bool) -> None:
    """Come to the end of a loop that was asked to end, before its last look or after it."""
    with asked.record_only():
        os.kill(os.getpid(), signal.SIGTERM)
        if looked:
            raise Interrupted(signal.SIGTERM)


@pytest.mark.parametrize("looked", [True, False])
def test_a_request_interrupts_once_also_after_the_last_look(looked: bool) -> None:
    with stop_requests() as asked:
        with pytest.raises(Interrupted):
            end(asked, looked=looked)
        # The run ends in order, and what comes now does not disturb it.
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_after_a_loop_interrupts() -> None:
    with stop_requests() as asked:
        assert asked_in_a_loop(asked) == []
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("later", "left"), [(1.9, [130]), (2.1, [])])
def test_a_second_ctrl_c_soon_after_leaves(later: float, left: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    with stop_requests() as asked, suppress(Interrupted), asked.record_only():
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += later
        os.kill(os.getpid(), signal.SIGTERM)
        assert codes == []
        now[0] = 100.0 + later
    with stop_requests() as asked, suppress(Interrupted), asked.record_only():
        asked.receive(signal.SIGINT, None)
        now[0] += later
        asked.receive(signal.SIGINT, None)
    assert codes == left


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_nothing_changes() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_requests() as asked:
            seen.append((asked.number, signal.getsignal(signal.SIGTERM)))

    thread: Any = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
