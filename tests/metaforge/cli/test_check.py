"""`metaforge check`: one line per check, counts at the end, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import faulty_learners
from metaforge.cli.app import app
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.testing import Subject, run_checks
from metaforge.testing.bench import INPUT_SHAPES
from metaforge.testing.checks import general, learners

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run only the checks of learners, and install faulty learners."""
    monkeypatch.setattr(run_checks, "_MODULES", (learners,))
    registry: Registry = scan()
    for name in ("Leaking", "Right"):
        registry = registry.with_plugin("learner", name.lower(), getattr(faulty_learners, name))
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: registry)


def test_a_correct_plugin_passes_and_checks_that_do_not_apply_are_listed() -> None:
    done = RUNNER.invoke(app, ["check", "adapter:sgd"])
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
    assert "predict from the support set and x only" in line
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
    assert failed["message"]


def test_options_are_set_as_in_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Subject] = []
    monkeypatch.setattr(run_checks, "run_checks", lambda subject, expected: asked.append(subject) or [])
    done = RUNNER.invoke(
        app, ["check", "maml", "--set", "steps=3", "--set", "norm=running", "--set", "adjoint=recompute"]
    )
    assert done.exit_code == 0, done.output
    config = asked[0].config
    assert (config.steps, config.norm, config.adjoint) == (3, "running", "recompute")


def test_failures_of_one_cause_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, *arguments: object, **named: object) -> None:
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr(faulty_learners.Right, "adapt", broken)
    # The line is that of this file, which must count as the plugin's.
    monkeypatch.setattr(faulty_learners.Right, "__module__", __name__)
    done = RUNNER.invoke(app, ["check", "right"])
    assert done.exit_code == 4
    (line,) = [line for line in done.stdout.splitlines() if "FAILED" in line]
    names = line.partition(" FAILED")[0].split(", ")
    assert len(names) > 5
    assert f", {len(names)} failed," in done.stdout
    assert done.stdout.count("oh no") == len(INPUT_SHAPES), "the message is printed once, with a line for each shape"
    rows = json.loads(RUNNER.invoke(app, ["check", "right", "--json"]).stdout)["checks"]
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["check"] for row in failed] == names
    (cause,) = {row["cause"] for row in failed}
    assert cause.startswith(f"ZeroDivisionError at {__file__}:")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["check", "no-such-plugin"], 4, "No plugin is called"),
        (["check", "sgd", "--kind", "learner"], 4, "Another kind has it"),
        (["check", "adapter:sgd", "--expect", "no-leek=slip"], 2, "Did you mean 'no-leak'"),
        (["check", "adapter:sgd", "--expect", "no-leak"], 2, "CHECK=REASON"),
        (["check", "adapter:sgd", "--set", "lr=-1"], 2, "adapter.lr is -1, but should be greater than"),
        (["check", "maml", "--set", "stepz=1"], 2, "Did you mean 'steps'"),
        (["check", "maml", "--set", "learner.steps=1"], 2, "There is no option 'learner.learner'"),
        (["check", "maml", "--set", "steps"], 2, "not of the form key=value"),
        (["check", "omniglot"], 3, "images are missing"),
    ],
)
def test_a_plugin_that_cannot_be_checked_ends_with_its_own_error(
    arguments: list[str], code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFORGE_DATA", str(tmp_path))
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == code
    assert sentence in done.stderr


def test_what_a_plugin_prints_stays_out_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "_MODULES", (general,))
    monkeypatch.setattr(faulty_learners.Right.Config, "model_json_schema", lambda: print("I print") or {})  # noqa: T201
    done = RUNNER.invoke(app, ["check", "right", "--json"])
    assert json.loads(done.stdout)["name"] == "right"
    assert "I print" in done.stderr
