"""The parts of a run as objects: a plugin that fails while it is built is named, and values keep their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metaforge.authoring.protocols import Options, TaskSpec
from metaforge.cli.describe import description, description_text
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError, PluginError
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
        registry = registry.including(kind, f"toy-{kind}", cls)
    return registry


def built(registry: Registry, **others: Any) -> Components:
    singles = {kind: {"name": f"toy-{kind}"} for kind in ("learner", "dataset", "backbone")}
    task = {"ways": 3, "shots": 2, "queries": 3}
    values = {**singles, "adapters": {"toy-adapter": {}}, "task": task, **others}
    return Components(resolve([Layer("a test", values)], registry))


def learner_of(parts: Components) -> Any:
    return parts.learner(parts.training_spec())


@pytest.mark.parametrize("kind", TOYS)
def test_a_plugin_that_cannot_be_built_is_named_with_the_cause(
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


def test_a_network_that_cannot_be_built_is_its_plugin_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, spec: TaskSpec) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(ToyNet, "build", broken)
    with pytest.raises(PluginError, match=r"The backbone .toy-backbone. of python cannot build a network .*SystemExit"):
        learner_of(built(installed()))


def test_what_a_plugin_says_to_people_passes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Any, config: Options) -> None:
        raise ConfigError("Not so.")

    monkeypatch.setattr(ToyNet, "__init__", refuses)
    with pytest.raises(ConfigError, match=r"^Not so\.$"):
        learner_of(built(installed()))


class Rates(ToyDescent):
    """Learns a rate."""

    def init(self, params: Any) -> Any:
        return {"rate": next(iter(params.values())).new_ones(())}


def test_values_keep_their_names_when_another_distribution_claims_one(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = installed(adapter=Rates)
    alone = learner_of(built(registry)).init(_key())
    rivals = [*registry.entries(), Entry("adapter", "toy-adapter", "nowhere:Rival", "rival")]
    contested = Registry(rivals)
    contested._own = registry._own
    beside = learner_of(built(contested, adapters={"python:toy-adapter": {}})).init(_key())
    assert list(beside) == list(alone)
    assert "adapters.toy-adapter.rate" in alone


def _key() -> Any:
    from metaforge.authoring.keys import make_key

    return make_key(0)


def test_a_plugin_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for twice in (["toy-adapter", "toy-adapter"], "toy-adapter, toy-adapter", ["toy-adapter", "python:toy-adapter"]):
        with pytest.raises(ConfigError, match="twice"):
            built(installed(), adapters=twice)


@pytest.mark.parametrize("facts", [KeyError("gone"), 3, {"what": object()}])
def test_broken_facts_leave_the_rest_of_a_description(facts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(self: Any, split: str) -> Any:
        if isinstance(facts, Exception):
            raise facts
        return facts

    monkeypatch.setattr(ToyClasses, "facts", told)
    registry = installed()
    text = description_text(description(registry, registry.find("dataset", "toy-dataset")))
    assert "Classes of random vectors" in text
    said = "cannot describe its splits: " if not isinstance(facts, dict) else "what "
    assert f"train: {'' if isinstance(facts, dict) else 'not available: The dataset '}" in text
    assert said in text


def test_a_run_s_own_plugins_are_meant_by_its_bare_names(tmp_path: Path) -> None:
    rival = Entry("learner", "maml", "nowhere:Rival", "rival", "9")
    contested = Registry([*scan().entries(), rival])
    with pytest.raises(PluginError, match="ambiguous"):
        contested.find("learner", "maml")
    settled = contested.recorded({"learner maml": "metaforge 0.1.0", "adapter sgd": "metaforge 0.1.0"})
    assert settled.find("learner", "maml").distribution == "metaforge"
    assert settled.find("learner", "maml").state == "ready"
    assert settled.find("learner", "rival:maml") == contested.find("learner", "rival:maml")
    assert contested.recorded({"learner maml": "gone 1"}).entries() == contested.entries()
    assert contested.recorded({"learner maml": None}).entries() == contested.entries()
