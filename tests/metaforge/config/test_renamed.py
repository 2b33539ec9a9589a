"""Settings under the names of earlier versions: they choose plugins now."""

from __future__ import annotations

from typing import Any

import pytest

from metaforge.config.renamed import renamed
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer, flags_layer
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan


def test_optimiser_and_schedule_become_tables() -> None:
    values = {"seed": 1, "train": {"lr": 0.1, "optimizer": "sgd", "schedule": "linear"}}
    found, paths = renamed(values)
    assert found == {"seed": 1, "train": {"lr": 0.1}, "optimizer": {"name": "sgd"}, "schedule": {"name": "linear"}}
    assert paths == {"train.optimizer": "optimizer.name", "train.schedule": "schedule.name"}
    assert values["train"] == {"lr": 0.1, "optimizer": "sgd", "schedule": "linear"}
    assert renamed(found) == (found, {})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"train": 3},
        {"train": {"optimizer": 3}},
        {"train": {"optimizer": "sgd"}, "optimizer": "adam"},
        {"train": {"optimizer": "sgd"}, "optimizer": {"name": "sgd"}},
    ],
)
def test_other_values_stay_as_they_are(values: dict[str, Any]) -> None:
    assert renamed(values) == (values, {})


def test_options_beside_an_earlier_name_are_its_options() -> None:
    values = {"train": {"optimizer": "sgd"}, "optimizer": {"momentum": 0.9}}
    assert renamed(values)[0]["optimizer"] == {"name": "sgd", "momentum": 0.9}


def test_the_origin_is_that_of_the_earlier_name() -> None:
    flags = flags_layer([("--set train.schedule", "train.schedule", "linear")])
    layers = [Layer("file", {"learner": "maml", "dataset": "sinusoid", "train": {"optimizer": "sgd"}}), flags]
    resolved = resolve(layers, scan())
    assert [choice.name for choice in (resolved.optimizer, resolved.schedule) if choice] == ["sgd", "linear"]
    assert resolved.origins["schedule.name"] == "--set train.schedule"
    assert resolved.origins["optimizer.name"] == "file"


def test_two_names_for_one_setting_are_an_error() -> None:
    values = {"learner": "maml", "train": {"optimizer": "sgd"}, "optimizer": "adam"}
    with pytest.raises(ConfigError, match=r"There is no option 'train\.optimizer'"):
        resolve([Layer("file", values)], scan())
