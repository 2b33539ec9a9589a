"""What all commands do alike: answers on stdout, notes on stderr, errors as messages with an exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fake_commands import Calls, run_command
from metaforge.cli.output import (
    flush_streams,
    handle_errors,
    print_answer,
    print_json,
    print_note,
    print_table,
    progress_display,
)
from metaforge.errors import DivergedError
from metaforge.registry.registry import Registry
from metaforge.system.signals import Interrupted


class ClosedPipe(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DivergedError("The loss is not finite."), 6, "Error: The loss is not finite."),
        (PermissionError(13, "Permission denied", "runs"), 8, "runs cannot be written or read: Permission denied"),
        (OSError(28, "No space left on device", "runs/x"), 8, "No space left"),
        (RuntimeError("odd"), 1, "Unexpected error: RuntimeError: odd"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (Interrupted(signal.SIGTERM), 143, "Terminated."),
        (BrokenPipeError(), 0, ""),
        (SystemExit(0), 4, "Error: The code of a plugin raised SystemExit: 0"),
    ],
)
def test_every_exception_ends_with_a_message_and_its_exit_code(
    calls: Calls, error: BaseException, code: int, sentence: str
) -> None:
    calls.error = error
    result = run_command("train -l guess -d dots")
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_the_traceback_is_shown_on_demand(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORGE_DEBUG", "1")
    result = run_command("describe halving --kind dataset")
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert "ModuleNotFoundError" in result.stderr


def test_a_command_keeps_its_name_and_signature_and_its_own_exit_code() -> None:
    def leave(code: int) -> None:
        """Leave."""
        raise typer.Exit(code)

    wrapped = handle_errors(leave)
    assert (wrapped.__name__, wrapped.__doc__) == ("leave", "Leave.")
    with pytest.raises(typer.Exit) as caught:
        wrapped(5)
    assert caught.value.exit_code == 5


def test_answers_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer("an answer")
    print_note("a note")
    assert capsys.readouterr() == ("an answer\n", "a note\n")


def test_json_is_readable_and_may_hold_paths(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": Path("here"), "text": "ä"})
    text = capsys.readouterr().out
    assert json.loads(text) == {"path": "here", "text": "ä"}
    assert "ä" in text


def test_a_closed_stderr_does_not_stop_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", ClosedPipe())
    print_note("a note")


def test_a_pipe_that_was_closed_is_replaced_by_the_null_device() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(writing, "w") as stream:
        stream.write("unread")
        patch.setattr(sys, "stdout", stream)
        flush_streams()
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev


def test_a_table_is_complete_and_free_of_markup_and_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "text"), [("a", "[red]x[/red]\x1b[2J"), ("b", "y" * 300)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "text"]
    assert "[red]x[/red] [2J" in lines[1]
    assert lines[2].endswith("y" * 300)


def test_a_table_is_fitted_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("name", "text"), [("a", "word " * 30)])
    _, *lines = stream.getvalue().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40


def test_progress_prints_a_line_for_every_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_display("evaluating", show=True) as progress:
        assert progress is not None
        for done in range(1, 11):
            progress(done, 10)
    assert capsys.readouterr().err.splitlines() == [f"evaluating: {done}/10" for done in (3, 5, 8, 10)]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_display("evaluating", show=True) as progress:
        assert progress is not None
        progress(5, 10)
    assert "evaluating" in stream.getvalue()
    assert "evaluating: 5/10" not in stream.getvalue()


def test_progress_can_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_display("evaluating", show=False) as progress:
        assert progress is None
    assert capsys.readouterr().err == ""


def test_control_characters_are_inert_on_both_streams(capsys: pytest.CaptureFixture[str]) -> None:
    print_note("run\x1b[2J\nfolder\x07")
    print_answer("report: \x9b31m")
    assert capsys.readouterr() == ("report:  31m\n", "run [2J\nfolder \n")


def test_control_characters_are_escaped_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"folder": "a\x1b\x9b\u202e\U000e0001é", "lines": ["x\ny"]}
    print_json(value)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert json.loads(printed) == value
    assert "é" in printed
