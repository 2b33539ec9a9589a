"""`metaforge check`: one line for each check, counts at the end, and exit codes that mean something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import faulty_learners
from metaforge.cli.app import app
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.testing import run_checks as collection
from metaforge.testing.checks import general, learners

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the dear checks to other tests, and have faulty learners installed."""
    monkeypatch.setattr(collection, "_MODULES", (learners,))
    registry: Registry = scan()
    for name in ("Leaking", "Right"):
        registry = registry.with_plugin("learner", name.lower(), getattr(faulty_learners, name))
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: registry)


def test_a_right_plugin_passes_and_what_does_not_apply_is_said() -> None:
    done = RUNNER.invoke(app, ["check", "sgd"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert any(line.startswith("no-leak") and " ok: " in line for line in lines)
    assert lines[-1].startswith("6 run, 0 failed, 0 expected failures")
    lines = RUNNER.invoke(app, ["check", "right", "--kind", "learner"]).stdout.splitlines()
    assert [line for line in lines if line.startswith("ways") and "not applicable: tags.fixed_ways" in line]


def test_a_faulty_plugin_fails_unless_that_is_expected() -> None:
    done = RUNNER.invoke(app, ["check", "leaking"])
    assert done.exit_code == 4
    (line,) = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert line.startswith("no-leak")
    assert "predict from support and x alone" in line
    assert ", 1 failed, 0 expected failures" in done.stdout
    done = RUNNER.invoke(app, ["check", "leaking", "--expect", "no-leak=it is shown to leak"])
    assert done.exit_code == 0
    assert ", 0 failed, 1 expected failures" in done.stdout
    assert "expected: it is shown to leak" in done.stdout


def test_json_has_the_counts_and_every_check() -> None:
    done = RUNNER.invoke(app, ["check", "leaking", "--json"])
    found = json.loads(done.stdout)
    assert (found["kind"], found["name"], found["failed"]) == ("learner", "leaking", 1)
    (failed,) = [row for row in found["checks"] if row["status"] == "failed"]
    assert failed["check"] == "no-leak"
    assert failed["said"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["check", "no-such-plugin"], 4, "No plugin is called"),
        (["check", "sgd", "--kind", "learner"], 4, "Another kind has it"),
        (["check", "sgd", "--expect", "no-leek=slip"], 2, "Did you mean 'no-leak'"),
        (["check", "sgd", "--expect", "no-leak"], 2, "CHECK=REASON"),
        (["check", "omniglot"], 3, "images are not there"),
    ],
)
def test_what_cannot_be_checked_ends_with_its_own_error(
    arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFORGE_DATA", str(tmp_path))
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == code
    assert said in done.stderr


def test_what_a_plugin_prints_stays_out_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "_MODULES", (general,))
    monkeypatch.setattr(faulty_learners.Right.Config, "model_json_schema", lambda: print("I print") or {})  # noqa: T201
    done = RUNNER.invoke(app, ["check", "right", "--json"])
    assert json.loads(done.stdout)["name"] == "right"
    assert "I print" in done.stderr
