"""`metaforge describe`: options, data sets, and every built-in plugin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from metaforge.authoring.protocols import Dataset, Options
from metaforge.cli.app import app
from metaforge.cli.describe import describe_options, description, description_text, value_text
from metaforge.errors import DataError
from metaforge.registry.entry import CORE
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan

RUNNER = CliRunner()
KEYS = {"kind", "name", "target", "distribution", "version", "summary", "state", "reason"}
KEYS |= {"text", "reference", "tags", "options", "defaults", "table", "command"}


class Many(Options):
    whole: int = Field(3, ge=1, lt=2**40, description="Text.")
    large: float = Field(1e6, gt=0, le=1e6, description="Text.")
    maybe: float | None = Field(None, gt=0, description="Text.")
    word: Literal["a", "none"] = Field("none", description="Text.")
    words: list[Literal["a", "b"]] = Field(["a"], max_length=2, description="Text.")
    pair: tuple[int, float] = Field((1, 2.5), description="Text.")
    shares: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((0.5,), min_length=1, description="Text.")
    text: str = Field("", min_length=2, max_length=9, pattern="^x", description="Text.")
    flag: bool = Field(True, description="Text.")
    where: Path = Field(Path("here"), description="Text.")
    table: dict[str, int] = Field({"a": 1}, description="Text.")
    anything: Any = Field(None, description="Text.")
    must: int = Field(description="Text.")


def test_types_defaults_and_bounds_are_texts() -> None:
    schema = Many.model_json_schema()
    described = {
        one["name"]: (one["type"], value_text(one["default"]), one["bounds"])
        for one in describe_options(schema, schema)
    }
    assert described == {
        "whole": ("int", "3", ">= 1, < 1099511627776"),
        "large": ("float", "1000000.0", "> 0, <= 1e+06"),
        "maybe": ("float or none", "none", "> 0"),
        "word": ("a | none", "none", ""),
        "words": ("list of (a | b)", "[a]", "at most 2 items"),
        "pair": ("list of int, float", "[1, 2.5]", ""),
        "shares": ("list of float", "[0.5]", "at least 1 item, each >= 0, < 1"),
        "text": ("text", '""', "at least 2 characters, at most 9 characters, matching ^x"),
        "flag": ("true | false", "true", ""),
        "where": ("path", "here", ""),
        "table": ("table of int", '{"a": 1}', ""),
        "anything": ("any value", "none", ""),
        "must": ("int", "none", ""),
    }


@pytest.mark.parametrize("entry", [one for one in scan().entries() if one.distribution == CORE], ids=lambda e: e.name)
def test_every_built_in_plugin_describes_itself(entry: Any) -> None:
    facts = description(scan(), entry, data=False)
    assert set(facts) == KEYS | {"dataset": {"splits"}, "preset": {"settings"}}.get(entry.kind, set())
    assert json.loads(json.dumps(facts)) == facts, "it has values that JSON does not"
    assert facts["text"].partition("\n")[0] == entry.summary
    for option in facts["options"]:
        assert option["type"] not in ("any value", "list", "table"), option
        assert option["text"].strip(), option
    assert "LEARNER" not in facts["command"]
    text = description_text(facts)
    assert "\n\n\n" not in text
    after = text.partition(facts["text"])[2]
    assert not [word for word in ("{", "None", "True") if word in after]


@pytest.mark.usefixtures("registry")
def test_describe_shows_options_paper_and_command() -> None:
    result = RUNNER.invoke(app, ["describe", "halving", "--kind", "adapter"])
    assert result.exit_code == 0
    for part in (
        "Halves the gradient.",
        "It has no state.",
        "rate  (float or none, default 0.5, > 0, <= 1)",
        "Factor of the gradient.",
    ):
        assert part in result.stdout
    assert "paper: A. Author 2020" in result.stdout
    assert "to use it: metaforge train --learner LEARNER --adapter halving" in result.stdout


@pytest.mark.usefixtures("registry")
def test_describe_as_json() -> None:
    facts = json.loads(RUNNER.invoke(app, ["describe", "halving", "--kind", "adapter", "--json"]).stdout)
    assert facts["kind"] == "adapter"
    assert facts["options"][0] == {
        "name": "rate",
        "type": "float or none",
        "default": 0.5,
        "required": False,
        "bounds": "> 0, <= 1",
        "text": "Factor of the gradient.",
    }


@pytest.mark.usefixtures("registry")
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
def test_a_plugin_that_cannot_be_described_is_refused(arguments: list[str], code: int, sentence: str) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_options_of_nested_models_have_dotted_names() -> None:
    class Inner(Options):
        depth: int = Field(default=2, ge=1, description="Depth.")

    class Outer(Options):
        inner: Inner = Inner()
        sizes: list[int] = Field(default=[1], description="Sizes.")
        must: bool = Field(description="Must be given.")

    schema = Outer.model_json_schema()
    described = {option["name"]: option for option in describe_options(schema, schema)}
    assert described["inner.depth"]["bounds"] == ">= 1"
    assert described["sizes"]["type"] == "list of int"
    assert described["must"]["required"]


class Half(Dataset):
    """Has one split."""

    Config = Options
    kind: ClassVar[Any] = "classification"
    defaults: ClassVar[Mapping[Any, Any]] = {"classification": {"train": {"ways": 3, "clip": None}}}

    def __init__(self, config: Any, *, root: Path) -> None:
        self.root = root

    def spec(self, split: str, shape: Any) -> Any: ...
    def sample(self, split: str, shape: Any, first: int, count: int, *, seed: int) -> Any: ...
    def facts(self, split: str) -> Any:
        if split != "train":
            raise DataError("There is nothing.", remedy="look elsewhere")
        return {"classes": 12, "error": 1 / 3, "folder": self.root.name}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([]).with_plugin("dataset", "half", Half)
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: registry)
    monkeypatch.setenv("METAFORGE_DATA", "/somewhere/data")


@pytest.mark.usefixtures("half")
def test_a_data_set_shows_its_splits_if_they_are_there() -> None:
    result = RUNNER.invoke(app, ["describe", "half"])
    assert result.exit_code == 0
    assert "  train: classes 12, error 0.3333, folder data\n" in result.stdout
    assert "  val: not available: There is nothing.\n" in result.stdout
    assert "kind: classification\n" in result.stdout
    assert "suggested settings for classification:\n  train.ways = 3\n  train.clip = none\n" in result.stdout
    assert result.stdout.endswith("to use it: metaforge train --learner LEARNER --dataset half\n")
    facts = json.loads(RUNNER.invoke(app, ["describe", "half", "--json"]).stdout)
    assert facts["splits"]["train"]["classes"] == 12
    assert facts["splits"]["test"] == {"unavailable": "There is nothing."}


def test_the_command_of_a_component_names_a_learner_that_can_use_it() -> None:
    registry = scan()
    for kind, name in (
        ("adapter", "sgd"),
        ("backbone", "mlp"),
        ("regularizer", "meta-dropout"),
        ("dataset", "sinusoid"),
    ):
        words = description(registry, registry.find(kind, name), data=False)["command"].split()
        learner = registry.load("learner", words[words.index("--learner") + 1])
        needed = {"adapter": "adapter", "backbone": "backbone", "regularizer": "backbone"}.get(kind)
        assert needed is None or needed in learner.tags.needs
        assert kind != "dataset" or "regression" in learner.tags.kinds
        # Not every data set has numbers of classes.
        assert not learner.tags.uses_classes
