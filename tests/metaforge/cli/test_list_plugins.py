"""`metaforge list-plugins` and `metaforge describe`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import Field
from typer.testing import CliRunner

from metaforge import __version__
from metaforge.authoring.protocols import Adapter, Options
from metaforge.cli.app import app
from metaforge.cli.describe import options
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry

runner = CliRunner()


class Halving(Adapter):
    """Halves the gradient.

    At once.
    """

    class Config(Options):
        rate: float | None = Field(default=0.5, gt=0, le=1, description="How much is left.")
        mode: str = Field(default="soft", description="A mode.")

    reference = "A. Author 2020"

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    entries = [
        Entry("learner", "twin", "zoo:Twin", "left", "1.0", "A [red]twin\x1b[2J.", "ready"),
        Entry("learner", "twin", "zoo:Twin", "right", "2.0"),
        Entry("dataset", "halving", "nowhere:Halving", "zoo", "1.0", "Cannot be imported."),
        Entry("hook", "old", "zoo:Old", "zoo", "1.0", state="incompatible", reason="it requires metaforge>=99"),
    ]
    made = Registry(entries).with_plugin("adapter", "halving", Halving)
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: made)
    return made


def test_the_list_shows_every_plugin_with_its_state() -> None:
    result = runner.invoke(app, ["list-plugins"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["kind", "name", "state", "distribution", "summary"]
    assert "left and right each offer it; use 'left:twin'" in result.stdout
    assert "it requires metaforge>=99" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_list_as_json() -> None:
    rows = json.loads(runner.invoke(app, ["list-plugins", "--json", "--kind", "learners"]).stdout)
    assert [(row["name"], row["distribution"], row["state"]) for row in rows] == [
        ("twin", "left", "ambiguous"),
        ("twin", "right", "ambiguous"),
    ]


def test_loading_shows_times_and_what_is_broken() -> None:
    rows = json.loads(runner.invoke(app, ["list-plugins", "--load", "--json"]).stdout)
    states = {(row["kind"], row["name"]): row for row in rows}
    assert states["adapter", "halving"]["state"] == "ready"
    assert states["adapter", "halving"]["seconds"] >= 0
    assert states["dataset", "halving"]["state"] == "broken"
    assert "No module named 'nowhere'" in states["dataset", "halving"]["reason"]
    assert states["hook", "old"]["seconds"] is None
    shown = runner.invoke(app, ["list-plugins", "--load"])
    assert shown.exit_code == 0
    assert "broken" in shown.stdout
    assert " ms" in shown.stdout
    assert "Note: 3 of 5 plugins are broken" in shown.stderr


def test_what_could_not_be_read_is_said_beside_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: Registry([], notes=["the attic is locked"]))
    result = runner.invoke(app, ["list-plugins", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert result.stderr == "Note: the attic is locked\n"


def test_an_unknown_kind_is_a_usage_error() -> None:
    result = runner.invoke(app, ["list-plugins", "--kind", "lerner"])
    assert result.exit_code == 2
    assert "Did you mean 'learner'?" in result.stderr
    assert result.stdout == ""


def test_describe_shows_options_paper_and_command() -> None:
    result = runner.invoke(app, ["describe", "halving", "--kind", "adapter"])
    assert result.exit_code == 0
    for part in (
        "Halves the gradient.",
        "At once.",
        "rate  (float or none, default 0.5, > 0, <= 1)",
        "How much is left.",
    ):
        assert part in result.stdout
    assert "paper: A. Author 2020" in result.stdout
    assert "use it: metaforge train --learner LEARNER --adapter halving" in result.stdout


def test_describe_as_json() -> None:
    facts = json.loads(runner.invoke(app, ["describe", "halving", "--kind", "adapter", "--json"]).stdout)
    assert facts["kind"] == "adapter"
    assert facts["options"][0] == {
        "name": "rate",
        "type": "float or none",
        "default": 0.5,
        "required": False,
        "bounds": "> 0, <= 1",
        "text": "How much is left.",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["describe", "halving"], 2, "choose one with --kind"),
        (["describe", "halvin"], 4, "Did you mean 'halving'?"),
        (["describe", "zzz"], 4, "pip install <package>"),
        (["describe", "halving", "--kind", "dataset"], 4, "No module named 'nowhere'"),
        (["describe", "twin"], 4, "'left:twin', 'right:twin'"),
        (["describe", "old"], 4, "it requires metaforge>=99"),
    ],
)
def test_describe_says_what_is_wrong(arguments: list[str], code: int, sentence: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_the_trace_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORGE_DEBUG", "1")
    result = runner.invoke(app, ["describe", "halving", "--kind", "dataset"])
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert "ModuleNotFoundError" in result.stderr


def test_options_of_nested_models_have_dotted_names() -> None:
    class Inner(Options):
        depth: int = Field(default=2, ge=1, description="Depth.")

    class Outer(Options):
        inner: Inner = Inner()
        sizes: list[int] = Field(default=[1], description="Sizes.")
        must: bool = Field(description="Must be given.")

    schema = Outer.model_json_schema()
    found = {option["name"]: option for option in options(schema, schema)}
    assert found["inner.depth"]["bounds"] == ">= 1"
    assert found["sizes"]["type"] == "list of int"
    assert found["must"]["required"]


def test_version_and_help() -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip() == f"metaforge {__version__}"
    shown = runner.invoke(app, ["--help"]).stdout
    for command in ("list-plugins", "describe", "train", "evaluate", "config", "data"):
        assert command in shown
