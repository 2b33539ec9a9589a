"""Building the components of a run: errors name the plugin, values keep their names, tasks are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import metaforge
from metaforge.authoring.protocols import AdapterTags, Options, Regularizer, TaskSpec
from metaforge.cli.describe import description, description_text
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError, DataError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs.assembly import Components
from metaforge.testing.toy import ToyClasses, ToyDescent, ToyLearner, ToyNet

TOYS = {"learner": ToyLearner, "dataset": ToyClasses, "backbone": ToyNet, "adapter": ToyDescent}


def installed(**exchanged: type[Any]) -> Registry:
    """Return a registry of the toys, some of them exchanged."""
    registry = Registry([])
    for kind, cls in (TOYS | exchanged).items():
        registry = registry.with_plugin(kind, f"toy-{kind}", cls)
    return registry


def built(registry: Registry, **others: Any) -> Components:
    singles = {kind: {"name": f"toy-{kind}"} for kind in ("learner", "dataset", "backbone")}
    task = {"ways": 3, "shots": 2, "queries": 3}
    values = {**singles, "adapters": {"toy-adapter": {}}, "task": task, **others}
    return Components(resolve([Layer("a test", values)], registry))


def learner_of(parts: Components) -> Any:
    return parts.learner(parts.training_spec())


@pytest.mark.parametrize("kind", TOYS)
def test_a_plugin_that_cannot_be_built_is_reported_with_the_cause(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any, *arguments: Any, **named: Any) -> None:
        print("LOUD")  # noqa: T201
        raise ValueError("no good\nmore")

    registry = installed()
    monkeypatch.setattr(TOYS[kind], "__init__", broken)
    with pytest.raises(PluginError) as caught:
        learner_of(built(registry))
    assert caught.value.what == f"The {kind} 'toy-{kind}' of python cannot be built: ValueError: no good"
    assert "METAFORGE_DEBUG=1" in caught.value.remedy
    assert capsys.readouterr().out == ""


def test_a_network_that_cannot_be_built_is_reported_with_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, spec: TaskSpec) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(ToyNet, "build", broken)
    with pytest.raises(PluginError, match=r"The backbone .toy-backbone. of python cannot build a network .*SystemExit"):
        learner_of(built(installed()))


def test_an_error_of_another_plugin_while_the_learner_is_built_names_that_plugin() -> None:
    class Unattachable(Regularizer):
        """Fails when a learner's model attaches it."""

        Config = Options

        def __init__(self, config: Options) -> None: ...

        def attach(self, modules: Any) -> None:
            raise LookupError("no such module")

    registry = installed().with_plugin("regularizer", "unattachable", Unattachable)
    with pytest.raises(PluginError, match=r"^The regularizer 'unattachable' of python raised LookupError in the const"):
        learner_of(built(registry, regularizers={"unattachable": {}}))


def test_what_is_no_module_is_the_error_of_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyNet, "build", lambda self, spec: None)
    with pytest.raises(PluginError, match=r"The backbone 'toy-backbone' of .*: TypeError: build returns NoneType"):
        learner_of(built(installed()))


@pytest.mark.parametrize(("name", "value"), [("tags", None), ("steps", "three"), ("norm", 3), ("transductive", None)])
def test_a_learner_whose_attributes_have_wrong_types_is_refused_by_name(name: str, value: object) -> None:
    class Odd(ToyLearner):
        """Sets an attribute to something else."""

        def __init__(self, config: Any, parts: Any) -> None:
            super().__init__(config, parts)
            setattr(self, name, value)

    with pytest.raises(PluginError, match=f"The learner 'toy-learner' of .* breaks its contract in .*: {name} is of"):
        learner_of(built(installed(learner=Odd)))


def test_errors_that_a_plugin_words_itself_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Any, config: Options) -> None:
        raise ConfigError("Not so.")

    monkeypatch.setattr(ToyNet, "__init__", refuses)
    with pytest.raises(ConfigError, match=r"^Not so\.$"):
        learner_of(built(installed()))


class Rates(ToyDescent):
    """Learns a rate."""

    def init(self, params: Any, key: Any) -> Any:
        return {"rate": next(iter(params.values())).new_ones(())}


def test_values_keep_their_names_if_another_distribution_has_a_plugin_of_that_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = installed(adapter=Rates)
    alone = learner_of(built(registry)).init(_key())
    rivals = [*registry.entries(), Entry("adapter", "toy-adapter", "nowhere:Rival", "rival")]
    contested = Registry(rivals)
    contested._own_classes = registry._own_classes
    beside = learner_of(built(contested, adapters={"python:toy-adapter": {}})).init(_key())
    assert list(beside) == list(alone)
    assert "adapters.toy-adapter.rate" in alone


def _key() -> Any:
    from metaforge.authoring.keys import make_key

    return make_key(0)


def test_a_plugin_can_be_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for twice in (["toy-adapter", "toy-adapter"], "toy-adapter, toy-adapter", ["toy-adapter", "python:toy-adapter"]):
        with pytest.raises(ConfigError, match="twice"):
            built(installed(), adapters=twice)


@pytest.mark.parametrize("facts", [KeyError("gone"), 3, {"what": object()}])
def test_broken_facts_do_not_prevent_a_description(facts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(self: Any, split: str) -> Any:
        if isinstance(facts, Exception):
            raise facts
        return facts

    monkeypatch.setattr(ToyClasses, "facts", told)
    registry = installed()
    text = description_text(description(registry, registry.find("dataset", "toy-dataset")))
    assert "Classification of random vectors" in text
    said = "cannot describe its splits: " if not isinstance(facts, dict) else "what "
    assert f"train: {'' if isinstance(facts, dict) else 'not available: The dataset '}" in text
    assert said in text


def test_bare_names_in_a_run_mean_the_plugins_that_it_was_trained_with(tmp_path: Path) -> None:
    rival = Entry("learner", "maml", "nowhere:Rival", "rival", "9")
    contested = Registry([*scan().entries(), rival])
    with pytest.raises(PluginError, match="ambiguous"):
        contested.find("learner", "maml")
    settled = contested.as_recorded({"learner maml": "metaforge 0.1.0", "adapter sgd": "metaforge 0.1.0"})
    assert settled.find("learner", "maml").distribution == "metaforge"
    assert settled.find("learner", "maml").state == "ready"
    assert settled.find("learner", "rival:maml") == contested.find("learner", "rival:maml")
    assert contested.as_recorded({"learner maml": "gone 1"}).entries() == contested.entries()
    assert contested.as_recorded({"learner maml": None}).entries() == contested.entries()


@pytest.mark.parametrize(
    ("settings", "error", "where"),
    [
        ({"evaluate": {"split": "tset"}}, ConfigError, r"evaluate\.split"),
        ({"evaluate": {"shots": [1, 40]}}, DataError, r"evaluate\.split"),
        ({"train": {"shots": 1, "queries": 1, "validate_every": 5}, "task": {"shots": 40}}, DataError, "'val' split"),
    ],
)
def test_validation_and_evaluation_are_checked_before_training(
    tmp_path: Path, settings: Any, error: type[Exception], where: str
) -> None:
    small = {"name": "glyphs", "train": 60, "val": 10, "test": 10}
    with pytest.raises(error, match=where):
        metaforge.train("protonet", small, steps=1, settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_infeasible_training_tasks_are_refused_with_their_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training \(train\.ways, train\.shots, train\.queries\)"):
        metaforge.train("protonet", {"name": "glyphs", "train": 20}, steps=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_ways_must_match_a_learner_with_fixed_outputs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one output per class"):
        metaforge.train("maml", "glyphs", steps=1, settings={"train": {"ways": 7}}, out=tmp_path / "run")


def test_the_tags_of_the_instance_decide_whether_training_ways_must_match() -> None:
    class Wide(ToyLearner):
        """Says only when it is built that it takes any number of classes."""

        def __init__(self, config: Any, parts: Any) -> None:
            super().__init__(config, parts)
            self.tags = replace(self.tags, fixed_ways=False)

    assert built(installed(learner=Wide), train={"ways": 4}).training_spec().outputs == 4
    with pytest.raises(ConfigError, match="one output per class"):
        built(installed(), train={"ways": 4}).training_spec()


def test_a_chain_without_a_learning_rate_is_refused() -> None:
    class Doubled(ToyDescent):
        """Changes the gradient, and takes no step."""

        tags = AdapterTags(rate=False)

    registry = scan().with_plugin("adapter", "doubled", Doubled)
    values = {"learner": {"name": "maml"}, "dataset": {"name": "sinusoid"}}

    def chained(*adapters: str) -> object:
        parts = Components(resolve([Layer("test", values | {"adapters": list(adapters)})], registry))
        return parts.learner(parts.training_spec())

    with pytest.raises(ConfigError, match="No adapter of the chain doubled has a learning rate") as caught:
        chained("doubled")
    assert caught.value.where == "adapters"
    assert chained("doubled", "sgd")
    assert chained("sgd")
