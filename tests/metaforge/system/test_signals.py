"""Signals are recorded and end a run at a step boundary; a double Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any

import pytest

from metaforge.system import signals
from metaforge.system.signals import DoublePressDetector, Interrupted, StopRequests, stop_requests


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_raises_outside_a_loop(number: signal.Signals, code: int) -> None:
    with stop_requests() as requests:
        with pytest.raises(Interrupted, match=number.name) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.exit_code == code
        assert requests.number == number


def recorded_in_a_loop(requests: StopRequests, *numbers: int) -> list[int | None]:
    """Return what a loop that receives these signals reads in `number` after each of them."""
    seen = []
    with suppress(Interrupted), requests.record_only():
        for number in numbers:
            os.kill(os.getpid(), number)
            seen.append(requests.number)
    return seen


def test_inside_a_loop_signals_are_recorded_and_the_first_one_counts() -> None:
    with stop_requests(exit_on_second=False) as requests:
        assert recorded_in_a_loop(requests, signal.SIGTERM, signal.SIGINT) == [signal.SIGTERM] * 2


def end_loop(requests: StopRequests, *, checked: bool) -> None:
    """Receive a signal in a loop, before its last check (`checked`) or after it."""
    with requests.record_only():
        os.kill(os.getpid(), signal.SIGTERM)
        if checked:
            raise Interrupted(signal.SIGTERM)


@pytest.mark.parametrize("checked", [True, False])
def test_a_signal_raises_once_before_or_after_the_last_check(checked: bool) -> None:
    with stop_requests() as requests:
        with pytest.raises(Interrupted):
            end_loop(requests, checked=checked)
        # The run is ending in order: a later signal is only recorded.
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_a_loop_raises() -> None:
    with stop_requests() as requests:
        assert recorded_in_a_loop(requests) == []
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("later", "exits"), [(1.9, [130]), (2.1, [])])
def test_a_second_ctrl_c_within_two_seconds_exits(
    later: float, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    with stop_requests() as requests, suppress(Interrupted), requests.record_only():
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += later
        os.kill(os.getpid(), signal.SIGTERM)
        assert codes == []
        now[0] = 100.0 + later
    with stop_requests() as requests, suppress(Interrupted), requests.record_only():
        requests.receive(signal.SIGINT, None)
        now[0] += later
        requests.receive(signal.SIGINT, None)
    assert codes == exits


def test_the_previous_handlers_are_restored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) != before[1]
        assert signal.getsignal(signal.SIGHUP) != before[2]
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals.hangup_is_ignored()
        with stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            assert requests.number is None
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not signals.hangup_is_ignored()


def test_in_another_thread_nothing_changes() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_requests() as requests:
            seen.append((requests.number, signal.getsignal(signal.SIGTERM)))

    thread: Any = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_a_double_press_is_two_signals_within_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 101.9, 104.0, 105.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(times))
    detector = DoublePressDetector()
    assert [detector.is_double_press() for _ in range(4)] == [False, True, False, True]


def test_a_launcher_may_forward_ctrl_c_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    with stop_requests(exit_on_second=False) as requests:
        assert recorded_in_a_loop(requests, signal.SIGINT, signal.SIGINT) == [signal.SIGINT] * 2
    assert codes == []
