"""Tests of the defaults of adapters and regularizers: they follow from the user's choice, below the user's values."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from config_toys import INNER_LOOP, PLAIN, Descent, Noise, config_of, with_values
from metaforge.authoring.protocols import Preset
from metaforge.config.resolve import resolve
from metaforge.config.sources import flags_layer
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.registry import Registry


class Learned(Descent):
    """An adapter for which one inner step is right."""

    defaults: ClassVar[Any] = {
        "classification": {
            "adapters": {"learned": {"lr": 0.7}},
            "learner": {"inner_steps": 1, "unknown": 3},
            "train": {"steps": 77},
        }
    }


class Calm(Noise):
    """A regularizer with a rate of its own for pictures."""

    defaults: ClassVar[Any] = {"classification": {"regularizers": {"calm": {"rate": 0.4}}}}


@pytest.fixture
def wider(registry: Registry) -> Registry:
    return registry.with_plugin("adapter", "learned", Learned).with_plugin("regularizer", "calm", Calm)


def test_defaults_of_a_chosen_adapter_are_above_those_of_the_learner(wider: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(adapters=["learned"])], wider)
    assert config_of(resolved.adapters[0]) == {"lr": 0.7}
    # An option that another learner may not have is dropped, as an option of a default backbone is.
    assert config_of(resolved.learner) == {"inner_steps": 1}
    assert (resolved.run.train.steps, resolved.run.train.lr) == (77, 0.002)
    assert resolved.origins["train.steps"] == "default of adapter learned"


def test_the_users_values_are_above_them(wider: Registry) -> None:
    flags = [("--adapter", "adapters", ["learned"]), ("--set", "learner.inner_steps", 4)]
    patch = [("--set", "adapters.learned.lr", 0.2)]
    resolved = resolve([INNER_LOOP, flags_layer([*flags, *patch])], wider)
    assert config_of(resolved.adapters[0]) == {"lr": 0.2}
    assert config_of(resolved.learner) == {"inner_steps": 4}


def test_every_plugin_of_a_chain_brings_its_own(wider: Registry) -> None:
    chain = with_values(adapters=["learned", "descent"], regularizers=["calm"])
    resolved = resolve([INNER_LOOP, chain], wider)
    assert [(choice.name, config_of(choice)) for choice in resolved.adapters] == [
        ("learned", {"lr": 0.7}),
        ("descent", {"lr": 0.4}),
    ]
    assert config_of(resolved.regularizers[0]) == {"rate": 0.4}


def test_the_highest_layer_chooses(wider: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(adapters=["learned"]), with_values(adapters=["descent"])], wider)
    assert config_of(resolved.learner) == {"inner_steps": 3}


class Small(Preset):
    """A small run."""

    settings: ClassVar[Any] = {
        "dataset": {"name": "waves"},
        "train": {"lr": 0.5, "steps": 5, "tasks": 6},
        "adapters": {"rates": {}},
        "learner": {"inner_steps": 7},
    }


class Smaller(Preset):
    """A smaller run."""

    settings: ClassVar[Any] = {"train": {"steps": 2}}


def test_presets_are_above_the_defaults_and_below_what_the_user_writes(wider: Registry) -> None:
    known = wider.with_plugin("preset", "small", Small).with_plugin("preset", "smaller", Smaller)
    run = resolve([with_values(learner="inner-loop", presets=["small", "smaller"], train={"tasks": 9})], known)
    assert run.dataset is not None
    assert run.dataset.name == "waves"
    assert (run.run.train.lr, run.run.train.steps, run.run.train.tasks) == (0.5, 2, 9)
    assert [choice.name for choice in run.adapters] == ["rates"]
    assert config_of(run.learner) == {"inner_steps": 7}
    assert run.origins["train.lr"] == "preset small"
    # The settings of the run contain those of the presets, so it is repeated without them.
    assert "presets" not in run.to_dict()


def test_settings_of_a_preset_that_do_not_fit_the_learner_are_dropped(wider: Registry) -> None:
    known = wider.with_plugin("preset", "small", Small)
    run = resolve([PLAIN, with_values(presets="small")], known)
    assert run.dataset is not None
    assert (run.adapters, run.dataset.name, run.run.train.steps) == ((), "pictures", 5)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"presets": ["small"]}, PluginError, "chooses presets"),
        ({"trian": {}}, ConfigError, "Did you mean 'train'"),
        ({"train": {"stepz": 3}}, ConfigError, "stepz"),
    ],
)
def test_a_preset_that_is_wrong_is_named(registry: Registry, settings: Any, error: Any, text: str) -> None:
    class Wrong(Preset):
        settings: ClassVar[Any] = {}

    Wrong.settings = settings
    with pytest.raises(error, match=text) as caught:
        resolve([INNER_LOOP, with_values(presets=["wrong"])], registry.with_plugin("preset", "wrong", Wrong))
    assert "wrong" in str(caught.value).lower()


def test_a_preset_has_no_options_and_must_exist(wider: Registry) -> None:
    known = wider.with_plugin("preset", "small", Small)
    with pytest.raises(ConfigError, match=r"presets\.small\.size"):
        resolve([INNER_LOOP, with_values(presets={"small": {"size": 3}})], known)
    with pytest.raises(PluginError, match="Did you mean 'small'"):
        resolve([INNER_LOOP, with_values(presets=["smal"])], known)


def test_another_kind_of_task_has_other_defaults(wider: Registry) -> None:
    resolved = resolve([with_values(learner="inner-loop", dataset="waves", adapters=["learned"])], wider)
    assert config_of(resolved.adapters[0]) == {"lr": 0.1}
    assert config_of(resolved.learner) == {"inner_steps": 5}


@pytest.mark.parametrize(
    "settings",
    [{"adapters": {"descent": {}}}, {"backbone": {"name": "dense"}}, {"regularizers": {"noise": {}}}],
)
def test_they_choose_no_plugin(registry: Registry, settings: Any) -> None:
    class Greedy(Descent):
        defaults: ClassVar[Any] = {"classification": settings}

    wider = registry.with_plugin("adapter", "greedy", Greedy)
    with pytest.raises(PluginError, match=r"defaults of adapter 'greedy' choose a plugin") as caught:
        resolve([INNER_LOOP, with_values(adapters=["greedy"])], wider)
    assert "adapters.greedy" in caught.value.remedy
