"""The schema of a run file accepts what `resolve` accepts, and refuses what it refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import Field
from typer.testing import CliRunner

import metaforge
from metaforge.authoring.protocols import Adapter, Options
from metaforge.cli.app import app
from metaforge.config.resolve import resolve
from metaforge.config.schema import kind_schema, run_schema
from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES, Layer
from metaforge.config.toml_text import to_toml_values
from metaforge.errors import MetaForgeError
from metaforge.registry.entry import KINDS, Entry
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan


class Nested(Options):
    depth: int | None = Field(None, ge=1, description="Depth.")


class Own(Adapter):
    """An adapter with nested options and a list."""

    class Config(Options):
        inner: Nested = Field(Nested(), description="More.")
        rates: list[float] = Field([0.1], min_length=1, description="Rates.")

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


class Indescribable(Own):
    """An adapter whose options have no JSON Schema."""

    class Config(Options):
        function: type[Any] = Field(int, description="A class.")

    Config.__get_pydantic_json_schema__ = classmethod(lambda cls, core, handler: 1 / 0)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return scan().with_plugin("adapter", "own.one", Own)


@pytest.fixture(scope="module")
def validator(registry: Registry) -> Any:
    schema = run_schema(registry).value
    jsonschema.Draft202012Validator.check_schema(schema)
    # Through text and back: everything in the schema must be a type that JSON has.
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("learner", scan().names("learner"))
def test_the_resolved_values_of_every_learner_are_valid(learner: str, registry: Registry, validator: Any) -> None:
    values = resolve([Layer("test", {"learner": learner})], registry).to_dict()
    validator.validate(values)
    validator.validate(to_toml_values(values))


def test_the_file_of_a_real_run_is_valid(tmp_path: Path, validator: Any) -> None:
    small = {"name": "glyphs", "train": 10, "test": 10, "val": 10}
    metaforge.train("maml", small, steps=1, tasks=1, out=tmp_path / "run", settings={"evaluate": {"tasks": 2}})
    values = tomllib.loads((tmp_path / "run" / "config.toml").read_text("utf-8"))
    assert set(values) == {*RunConfig.model_fields, *SINGLES, *SETS}
    validator.validate(values)


GOOD = [
    '[learner]\nname = "maml"\nsteps = 2',
    'learner = "maml"',
    'learner = "metaforge:maml"',
    'learner = "maml"\nadapters = "sgd, meta-sgd"',
    'learner = "maml"\nadapters = ["meta-sgd"]',
    'learner = "maml"\nregularizers = "none"\nhooks = ["none"]',
    'learner = "maml"\n[adapters.sgd]\nlr = 0.1\n[adapters."own.one"]\nrates = [1, 2]\ninner.depth = "none"',
    'learner = "maml"\nadapters = "own.one"',
    'learner = "protonet"\n[backbone]\nname = "conv4"\nfilters = "none"',
    'learner = "maml"\n[train]\nbudget = "1h30m"\nclip = "none"',
    'learner = "maml"\n[train]\nbudget = 90\nsteps = 10\n[checkpoint]\ninterval = 0',
    'seed = 3\ndevice = "cpu"\nlearner = "maml"\n[evaluate]\nshots = [1, 5]\n[engine]\nplan = "vmap"',
]
BAD = [
    '[learner]\nname = "maml"\nstepz = 2',
    '[learner]\nname = "maml"\nsteps = -2',
    '[learner]\nname = "mamk"',
    'learner = "mamk"',
    "learner = 3",
    'learner = "maml"\nadapters = ["sdg"]',
    'learner = "maml"\nadapters = "sgd; meta-sgd"',
    'learner = "maml"\nadapters = ["none", "sgd"]',
    'learner = "maml"\nadapters = "ownxone"',
    'learner = "maml"\n[adapters.sgd]\nlrr = 0.1',
    'learner = "maml"\n[adapters.sdg]\nlr = 0.1',
    'learner = "maml"\n[adapters."own.one"]\ninner.depht = 1',
    'learner = "maml"\n[adapters."own.one"]\nrates = "none"',
    'learner = "maml"\n[train]\nbudget = "soon"',
    'learner = "maml"\n[train]\nbudget = -1',
    'learner = "maml"\n[train]\nsteps = "none"',
    'learner = "maml"\n[trian]\nsteps = 10',
    'learner = "maml"\nhooks = 3',
    'learner = "maml"\n[hooks]\nprogress = 3',
]


@pytest.mark.parametrize(("text", "good"), [*((text, True) for text in GOOD), *((text, False) for text in BAD)])
def test_the_schema_and_resolve_agree(text: str, good: bool, registry: Registry, validator: Any) -> None:
    values = tomllib.loads(text)
    assert validator.is_valid(values) == good, [error.message for error in validator.iter_errors(values)]
    if good:
        resolve([Layer("test", values)], registry)
    else:
        with pytest.raises(MetaForgeError):
            resolve([Layer("test", values)], registry)


def test_an_error_names_the_option_that_is_wrong(validator: Any) -> None:
    (error,) = validator.iter_errors({"learner": {"name": "maml", "stepz": 2}})
    assert error.json_path == "$.learner"
    assert "'stepz' was unexpected" in error.message


def test_options_without_a_name_may_be_those_of_any_plugin(validator: Any) -> None:
    assert validator.is_valid({"learner": {"distance": "cosine"}, "dataset": {"jitter": 0.5}})
    assert not validator.is_valid({"learner": {"distance": "cosine", "jitter": 0.5}})


def test_every_kind_has_a_table_and_a_schema(registry: Registry, validator: Any) -> None:
    for kind in KINDS:
        schema = kind_schema(registry, kind).value
        jsonschema.Draft202012Validator.check_schema(schema)
        for name in registry.names(kind):
            assert name in json.dumps(schema)
    one = jsonschema.Draft202012Validator(kind_schema(registry, "adapter").value)
    assert one.is_valid({"sgd": {"lr": 0.1}})
    assert not one.is_valid({"sgd": {"lrr": 0.1}})


def broken() -> Registry:
    """Return a registry with plugins of every state, of which only `own` can be used."""
    entries = [
        Entry("adapter", "gone", "nowhere:Gone", "zoo", "1.0"),
        Entry("adapter", "old", "zoo:Old", "zoo", "1.0", state="incompatible", reason="it requires metaforge>=99"),
        Entry("adapter", "secret", "zoo:Secret", "zoo", "1.0", state="hidden", reason="not named"),
        Entry("adapter", "twin", "zoo:Twin", "left", "1.0"),
        Entry("adapter", "twin", "zoo:Twin", "right", "1.0"),
    ]
    return Registry(entries).with_plugin("adapter", "own", Own).with_plugin("adapter", "odd", Indescribable)


def test_a_broken_plugin_is_left_out_with_a_sentence_and_the_others_stay() -> None:
    schema = run_schema(broken())
    sentences = "\n".join(schema.left_out)
    for part in ("'gone' of zoo 1.0 cannot be loaded", "it requires metaforge>=99", "'odd' of python cannot be descri"):
        assert part in sentences
    assert "secret" not in sentences
    validator = jsonschema.Draft202012Validator(schema.value)
    assert validator.is_valid({"adapters": ["own"]})
    for name in ("gone", "old", "secret", "odd", "twin"):
        assert not validator.is_valid({"adapters": [name]}), name
    assert not validator.is_valid({"learner": "anything"})


def test_an_ambiguous_plugin_has_only_its_qualified_name() -> None:
    class Other(Own):
        """Another of that name."""

    registry = Registry([Entry("adapter", "own", "zoo:Own", "right", "1.0")]).with_plugin("adapter", "own", Own)
    both = Registry([*registry.entries(), Entry("adapter", "own", f"{__name__}:Own", "right", "1.0")])
    both._own_classes = {("adapter", "python:own"): Own, ("adapter", "right:own"): Other}
    validator = jsonschema.Draft202012Validator(run_schema(both).value)
    assert validator.is_valid({"adapters": ["right:own", "python:own"]})
    assert not validator.is_valid({"adapters": ["own"]})


def test_the_command_prints_and_writes_the_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("metaforge.registry.scan.scan", broken)
    runner = CliRunner()
    result = runner.invoke(app, ["schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == run_schema(broken()).value
    assert "Left out: The adapter 'gone' of zoo 1.0 cannot be loaded" in result.stderr
    file = tmp_path / "new" / "run.schema.json"
    result = runner.invoke(app, ["schema", "--kind", "adapters", "--out", str(file), "--json"])
    assert result.exit_code == 0
    assert json.loads(file.read_text("utf-8")) == kind_schema(broken(), "adapter").value
    assert json.loads(result.stdout)["file"] == str(file)
    assert runner.invoke(app, ["schema", "--kind", "adaptor"]).exit_code == 2
