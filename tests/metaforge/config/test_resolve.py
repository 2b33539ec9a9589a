"""Resolving: which layer wins, which options are dropped, and which combinations are errors."""

from __future__ import annotations

import tomllib
from typing import Any, ClassVar

import pytest
from pydantic import Field, field_validator

from config_toys import INNER_LOOP, PLAIN, Either, InnerLoop, Pictures, config_of, with_values
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer, flags_layer, parse_setting
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan


def test_defaults_of_the_learner_win_over_those_of_the_dataset_and_the_core(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP], registry)
    assert resolved.run.train.lr == 0.002
    assert resolved.run.train.tasks == 4
    assert resolved.run.task.ways == 5
    assert config_of(resolved.learner) == {"inner_steps": 3}
    assert [choice.name for choice in resolved.adapters] == ["descent"]
    assert config_of(resolved.adapters[0]) == {"lr": 0.4}
    assert resolved.backbone is not None
    assert resolved.backbone.name == "conv"
    assert resolved.origins["train.lr"] == "default of learner inner-loop"
    assert resolved.origins["train.tasks"] == "default of dataset pictures"
    assert resolved.origins["task.ways"] == "default"
    assert resolved.origins["learner.name"] == "test"


def test_the_kind_of_the_dataset_chooses_the_defaults(registry: Registry) -> None:
    resolved = resolve([with_values(learner="inner-loop", dataset="waves")], registry)
    assert config_of(resolved.adapters[0]) == {"lr": 0.01}
    assert config_of(resolved.backbone) == {"width": 40}
    assert resolved.run.task.ways == 1
    assert config_of(resolved.learner) == {"inner_steps": 5}


def test_an_option_of_the_dataset_can_choose_its_kind(registry: Registry) -> None:
    wider = registry.with_plugin("dataset", "either", Either)
    for options in ({"dataset": "either:true"}, {"dataset": {"name": "either", "curved": True}}):
        resolved = resolve([with_values(learner="inner-loop", **options)], wider)
        assert (resolved.run.task.ways, resolved.run.task.shots) == (1, 7)
        assert config_of(resolved.dataset) == {"curved": True}
        assert config_of(resolved.backbone) == {"width": 40}
        with pytest.raises(ConfigError, match="'plain' solves classification tasks, but the data set 'either' has"):
            resolve([with_values(learner="plain", **options)], wider)
    assert resolve([with_values(learner="inner-loop", dataset="either")], wider).run.task.ways == 5
    # An option that a higher layer takes back, or that is meant for another data set, chooses nothing.
    below = with_values(learner="inner-loop", dataset={"name": "either", "curved": True})
    for above in ({"curved": False}, {"name": "pictures"}):
        assert resolve([below, Layer("above", {"dataset": above})], wider).run.task.ways == 5


def test_a_dataset_that_cannot_tell_its_kind_is_named(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pictures, "variant", classmethod(lambda cls, options: options["missing"]))
    with pytest.raises(PluginError, match=r"pictures.*KeyError"):
        resolve([PLAIN], registry)


def test_a_higher_layer_wins_and_other_values_stay(registry: Registry) -> None:
    file = Layer("run.toml", {"train": {"lr": 0.1, "tasks": 7}, "learner": {"name": "inner-loop", "inner_steps": 9}})
    flags = flags_layer([("--set train.lr", "train.lr", 0.2), ("--dataset", "dataset.name", "pictures")])
    resolved = resolve([file, flags], registry)
    assert (resolved.run.train.lr, resolved.run.train.tasks) == (0.2, 7)
    assert config_of(resolved.learner) == {"inner_steps": 9}
    assert resolved.origins["train.lr"] == "--set train.lr"
    assert resolved.origins["train.tasks"] == "run.toml"


def test_another_name_drops_options_of_the_old_plugin_with_a_note(registry: Registry) -> None:
    file = Layer("run.toml", {"learner": {"name": "plain", "temperature": 2.0}, "dataset": {"name": "pictures"}})
    resolved = resolve([file, flags_layer([("--learner", "learner.name", "inner-loop")])], registry)
    assert config_of(resolved.learner) == {"inner_steps": 3}
    assert len(resolved.notes) == 1
    assert "temperature" in resolved.notes[0]
    assert "--learner" in resolved.notes[0]


def test_the_same_name_again_keeps_the_options(registry: Registry) -> None:
    file = Layer("run.toml", {"learner": {"name": "inner-loop", "inner_steps": 9}, "dataset": {"name": "pictures"}})
    resolved = resolve([file, flags_layer([("--learner", "learner.name", "inner-loop")])], registry)
    assert config_of(resolved.learner) == {"inner_steps": 9}
    assert resolved.notes == ()


def test_default_options_that_another_backbone_lacks_are_dropped(registry: Registry) -> None:
    class Moody(InnerLoop):
        defaults: ClassVar[Any] = {"classification": {"adapters": ["descent"], "backbone": {"variant": "wide"}}}

    moody = registry.with_plugin("learner", "moody", Moody)
    resolved = resolve([with_values(learner="moody", dataset="pictures")], moody)
    assert config_of(resolved.backbone) == {"channels": 64}
    with pytest.raises(ConfigError, match=r"no option 'backbone\.variant'"):
        resolve([with_values(learner="moody", dataset="pictures", backbone={"variant": "wide"})], moody)


def test_another_backbone_drops_default_options_without_a_note(registry: Registry) -> None:
    layer = with_values(learner="inner-loop", dataset="waves", backbone={"name": "conv", "channels": 3})
    resolved = resolve([layer], registry)
    assert config_of(resolved.backbone) == {"channels": 3}
    assert resolved.notes == ()


def test_a_set_replaces_the_lower_set_and_keeps_options_of_the_same_names(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(adapters={"rates": {"lr": 0.3}, "descent": {}})], registry)
    assert [(choice.name, config_of(choice)["lr"]) for choice in resolved.adapters] == [
        ("rates", 0.3),
        ("descent", 0.4),
    ]
    assert resolved.origins["adapters.descent.lr"] == "default of learner inner-loop"
    resolved = resolve([INNER_LOOP, with_values(adapters={"rates": {}})], registry)
    assert [choice.name for choice in resolved.adapters] == ["rates"]


def test_a_flag_changes_options_only_of_plugins_in_the_set(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, flags_layer([("--set", "adapters.descent.lr", 0.7)])], registry)
    assert config_of(resolved.adapters[0]) == {"lr": 0.7}
    with pytest.raises(ConfigError, match=r"adapters\.rates is not among the adapters"):
        resolve([INNER_LOOP, flags_layer([("--set", "adapters.rates.lr", 0.7)])], registry)
    chosen = flags_layer([("--set", "adapters.rates.lr", 0.7), ("--adapter", "adapters", "rates,descent")])
    resolved = resolve([INNER_LOOP, chosen], registry)
    assert [(choice.name, config_of(choice)["lr"]) for choice in resolved.adapters] == [
        ("rates", 0.7),
        ("descent", 0.4),
    ]


def test_a_set_is_given_as_a_list_or_a_text_and_cleared_by_an_empty_table(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(regularizers=["noise"])], registry)
    assert [choice.name for choice in resolved.regularizers] == ["noise"]
    cleared = resolve([INNER_LOOP, with_values(regularizers="noise"), with_values(regularizers={})], registry)
    assert cleared.regularizers == ()


def test_a_regularizer_without_a_backbone_to_act_on_is_refused(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"'plain' has no backbone for a regularizer to act on.*noise") as caught:
        resolve([PLAIN, with_values(regularizers=["noise"])], registry)
    assert "leave the regularizer out" in caught.value.remedy
    assert resolve([PLAIN, with_values(regularizers=[])], registry).regularizers == ()


def test_default_components_that_the_learner_does_not_use_are_dropped(registry: Registry) -> None:
    resolved = resolve([PLAIN], registry)
    assert resolved.backbone is None
    assert resolved.adapters == ()


@pytest.mark.parametrize("values", [{"backbone": "conv"}, {"backbone": {"channels": 3}}, {"adapters": ["descent"]}])
def test_explicit_components_that_the_learner_does_not_use_are_refused(
    registry: Registry, values: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"'plain' uses no (backbone|adapter)") as caught:
        resolve([PLAIN, Layer("--flag", values)], registry)
    assert caught.value.where == "--flag"


def test_a_component_that_is_needed_and_missing_is_an_error(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="needs an adapter"):
        resolve([INNER_LOOP, with_values(adapters={})], registry)


def test_kinds_of_learner_and_dataset_must_agree(registry: Registry) -> None:
    with pytest.raises(
        ConfigError, match="'plain' solves classification tasks, but the data set 'waves' has regression"
    ):
        resolve([with_values(learner="plain", dataset="waves")], registry)


def test_a_learner_is_required_unless_the_configuration_may_be_incomplete(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="inner-loop, plain"):
        resolve([with_values(dataset="pictures")], registry)
    resolved = resolve([with_values(dataset="pictures")], registry, complete=False)
    assert resolved.learner is None
    assert resolved.dataset is not None


def test_the_default_dataset_is_that_of_a_kind_of_task(registry: Registry) -> None:
    entry = Entry("dataset", "standard", "json:JSONDecoder", "metaforge")
    with_default = Registry([*registry.entries(), entry], {"classification": "json:JSONDecoder"})
    assert with_default.default("classification") == entry
    assert with_default.default("regression") is None
    # A target of that name in another distribution is not the default.
    assert (
        Registry([Entry("dataset", "x", "json:JSONDecoder", "other")], {"classification": "json:JSONDecoder"}).default(
            "classification"
        )
        is None
    )


def test_an_error_in_a_validator_of_options_names_the_plugin(registry: Registry) -> None:
    class Fussy(Pictures):
        class Config(Pictures.Config):
            size: int = Field(default=3, description="A size.")

            @field_validator("size")
            @classmethod
            def reject(cls, value: int) -> int:
                raise LookupError("no size will do")

    registry = registry.with_plugin("dataset", "fussy", Fussy)
    with pytest.raises(PluginError, match=r"dataset 'fussy' of python cannot read its options: LookupError: no size"):
        resolve([Layer("a test", {"learner": "plain", "dataset": {"name": "fussy", "size": 4}})], registry)


def test_plugin_defaults_may_not_choose_a_learner_or_dataset(registry: Registry) -> None:
    class Bossy(Pictures):
        defaults: ClassVar[Any] = {"classification": {"learner": {"name": "plain"}}}

    with pytest.raises(PluginError, match="choose a learner"):
        resolve([with_values(learner="plain", dataset="bossy")], registry.with_plugin("dataset", "bossy", Bossy))


def test_none_clears_a_value_that_a_plugin_s_default_sets(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, flags_layer([("--set", *parse_setting("train.clip=none"))])], registry)
    assert resolved.run.train.clip is None
    assert tomllib.loads(resolved.to_toml())["train"]["clip"] == "none"


def test_the_optimizer_and_the_schedule_have_defaults_that_a_learner_and_the_user_override() -> None:
    installed = scan()

    def chosen(**values: Any) -> list[str]:
        resolved = resolve([with_values(**values)], installed)
        return [choice.name for choice in (resolved.optimizer, resolved.schedule) if choice is not None]

    assert chosen(learner="maml", dataset="sinusoid") == ["adam", "constant"]
    assert chosen(learner="reptile", dataset="sinusoid") == ["sgd", "linear"]
    assert chosen(learner="reptile", dataset="sinusoid", optimizer="adamw", schedule={"name": "step"}) == [
        "adamw",
        "step",
    ]
    options = {"optimizer": {"momentum": 0.9}}
    resolved = resolve([with_values(learner="reptile", dataset="sinusoid", **options)], installed)
    assert config_of(resolved.optimizer)["momentum"] == 0.9
    with pytest.raises(ConfigError, match=r"There is no option 'optimizer\.momentum'"):
        resolve([with_values(learner="maml", dataset="sinusoid", **options)], installed)


def test_a_registry_without_defaults_has_no_optimizer(registry: Registry) -> None:
    resolved = resolve([PLAIN], registry)
    assert (resolved.optimizer, resolved.schedule) == (None, None)
