"""`metaforge check`: one line per check, counts at the end, and exit codes."""

from __future__ import annotations

import json
import sys
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


NETWORKS = """
from torch import nn

class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh())

class Scaled(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)

class Subclassed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 4), Scaled(4))

class Refused(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 4), nn.AlphaDropout(0.5))

class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(6, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module in the working directory."""
    (tmp_path / "networks_to_check.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return "networks_to_check"


def test_a_network_is_compared_with_plain_pytorch_in_every_way(networks: str) -> None:
    command = ["check", "--x-shape", "6", "--fast", "--backbone"]
    done = RUNNER.invoke(app, [*command, f"{networks}:Small"])
    assert (done.exit_code, [line.split()[:2] for line in done.stdout.splitlines()]) == (
        0,
        [["module", "equal"], ["loop", "equal"], ["vmap", "equal"], ["fold", "equal"]],
    )
    # A plan that is refused is no failure; a network that is refused is one, and so are other numbers.
    done = RUNNER.invoke(app, [*command, f"{networks}:Subclassed"])
    assert done.exit_code == 0
    assert "fold      refused: Plan 'fold' gives wrong meta-gradients with batch_norm" in done.stdout
    done = RUNNER.invoke(app, [*command, f"{networks}:Refused"])
    assert (done.exit_code, len(done.stdout.splitlines())) == (4, 1)
    assert "module    refused: A layer of type AlphaDropout draws noise that no key governs" in done.stdout
    done = RUNNER.invoke(app, [*command, f"{networks}:Counting", "--json"])
    results = json.loads(done.stdout)["results"]
    assert (done.exit_code, results[0]["way"], results[0]["status"]) == (4, "module", "different")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "There is nothing to check"),
        ("maml --backbone networks_to_check:Small --x-shape 6", "are two checks"),
        ("--backbone networks_to_check:Small", "The shape of an input of the network is not known"),
        ("--backbone networks_to_check:Nothing --x-shape 6", "names nothing that builds a module"),
        ("--backbone no_such_module:Small --x-shape 6", "cannot be imported"),
    ],
)
def test_a_comparison_without_what_it_needs_is_refused(networks: str, words: str, message: str) -> None:
    done = RUNNER.invoke(app, ["check", *words.split()])
    assert done.exit_code == 2
    assert message in done.stderr
