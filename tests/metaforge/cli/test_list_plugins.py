"""`metaforge list-plugins`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from metaforge.cli.app import app
from metaforge.registry.registry import Registry

RUNNER = CliRunner()
pytestmark = pytest.mark.usefixtures("registry")


def test_the_list_shows_every_plugin_with_its_state() -> None:
    result = RUNNER.invoke(app, ["list-plugins"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["kind", "name", "state", "distribution", "summary"]
    assert "left and right each offer it; use 'left:twin'" in result.stdout
    assert "it requires metaforge>=99" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_list_as_json() -> None:
    rows = json.loads(RUNNER.invoke(app, ["list-plugins", "--json", "--kind", "learners"]).stdout)
    assert [(row["name"], row["distribution"], row["state"]) for row in rows] == [
        ("twin", "left", "ambiguous"),
        ("twin", "right", "ambiguous"),
    ]


def test_with_load_import_times_and_broken_plugins_are_shown() -> None:
    rows = json.loads(RUNNER.invoke(app, ["list-plugins", "--load", "--json"]).stdout)
    states = {(row["kind"], row["name"]): row for row in rows}
    assert states["adapter", "halving"]["state"] == "ready"
    assert states["adapter", "halving"]["seconds"] >= 0
    assert states["dataset", "halving"]["state"] == "broken"
    assert "No module named 'nowhere'" in states["dataset", "halving"]["reason"]
    assert states["hook", "old"]["seconds"] is None
    shown = RUNNER.invoke(app, ["list-plugins", "--load"])
    assert shown.exit_code == 0
    assert "broken" in shown.stdout
    assert " ms" in shown.stdout
    assert "Note: 3 of 5 plugins are broken" in shown.stderr


def test_what_could_not_be_read_is_a_note_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: Registry([], notes=["the attic is locked"]))
    result = RUNNER.invoke(app, ["list-plugins", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert result.stderr == "Note: the attic is locked\n"


def test_an_unknown_kind_is_a_usage_error() -> None:
    result = RUNNER.invoke(app, ["list-plugins", "--kind", "lerner"])
    assert result.exit_code == 2
    assert "Did you mean 'learner'?" in result.stderr
    assert result.stdout == ""
