"""The command line as a whole: its commands, its version, and how it exits."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from metaforge import __version__
from metaforge.cli.app import app, main

RUNNER = CliRunner()


def test_version_and_help() -> None:
    assert RUNNER.invoke(app, ["--version"]).stdout.strip() == f"metaforge {__version__}"
    shown = RUNNER.invoke(app, ["--help"]).stdout
    for command in (
        "list-plugins",
        "describe",
        "train",
        "evaluate",
        "config",
        "data",
        "new",
        "schema",
        "check",
        "ckpt",
    ):
        assert command in shown


def test_help_lists_the_exit_codes() -> None:
    text = " ".join(RUNNER.invoke(app, ["--help"]).stdout.split())
    for part in ("0 ok", "2 usage or configuration", "6 diverged", "143 terminated"):
        assert part in text


def test_an_unknown_command_is_a_usage_error() -> None:
    result = RUNNER.invoke(app, ["trian"])
    assert result.exit_code == 2
    assert "trian" in result.stderr


def test_a_console_that_lacks_a_character_gets_a_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["metaforge", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    print("ü", file=stream, flush=True)
    assert stream.buffer.getvalue() == f"metaforge {__version__}\n?\n".encode()  # type: ignore[attr-defined]


@pytest.mark.parametrize("several", [True, False])
def test_one_of_several_processes_exits_without_the_interpreters_shutdown(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[object] = []
    processes = SimpleNamespace(under_torchrun=lambda: several, exit_now=codes.append)
    monkeypatch.setitem(sys.modules, "metaforge.engine.processes", processes)
    monkeypatch.setattr(sys, "argv", ["metaforge", "--nonsense"])
    with pytest.raises(SystemExit):
        main()
    assert codes == ([2] if several else [])
