"""Tests of the test bench: what is built around each kind of plugin, and how differences are described."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

import faulty_components
import faulty_learners
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.authoring.kinds import REGRESSION, TaskKind
from metaforge.authoring.protocols import STATE, Parts, Tags
from metaforge.registry.scan import scan
from metaforge.testing import Subject
from metaforge.testing.bench import (
    INPUT_SHAPES,
    build_bench,
    build_benches,
    build_chain_bench,
    difference,
    learner_tags,
    task_keys,
    task_kinds,
)
from metaforge.testing.toy import ToyCurves, ToyDescent, ToyLearner, ToyNet

LEARNER = Subject.of(ToyLearner)


def test_one_bench_per_kind_of_task_that_a_learner_supports() -> None:
    names = ["classification", "multi-label", "regression"]
    # It does not name the second, but solves any supervised kind.
    assert [bench.spec.kind.name for bench in build_benches(LEARNER)] == task_kinds(LEARNER) == names
    assert ToyLearner.tags.kinds == {"classification", "regression"}
    assert task_kinds(Subject.of(ToyNet)) == ["classification"]
    assert learner_tags(Subject.of(ToyNet)) == ToyLearner.tags


def test_the_tags_of_a_learner_are_those_of_an_instance_if_it_can_be_built() -> None:
    class Either(ToyLearner):
        """Takes images only; its options change its tags."""

        def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
            assert len(parts.spec.x_shape) == 3
            super().__init__(config, parts)
            self.tags = replace(self.tags, adapts=config.steps > 0)

    subject = Subject.of(Either)
    assert learner_tags(subject).adapts
    assert not learner_tags(subject.with_options({"steps": 0})).adapts
    assert learner_tags(replace(subject, x_shape=(6,)).with_options({"steps": 0})).adapts


def test_perturbed_values_differ_from_zero_and_one_but_state_does_not_change() -> None:
    bench = build_bench(LEARNER)
    initial, perturbed = bench.values(perturbed=False), bench.values()
    assert initial.keys() == perturbed.keys()
    for name, value in initial.items():
        assert torch.equal(value, perturbed[name]) == name.startswith(STATE)
        assert value.dtype == perturbed[name].dtype == torch.float64


def test_tasks_predictions_and_steps_have_a_task_dimension_where_they_should() -> None:
    bench = build_bench(LEARNER)
    assert bench.tasks(5).query.x.shape[0] == 5
    assert not difference(bench.task(1), bench.task(1))
    assert bench.predict(bench.values(), bench.task()).shape == (len(bench.task().query.x), bench.spec.outputs)
    assert bench.step(bench.values(), bench.tasks(2)).losses.shape == (2,)
    assert task_keys(4).shape == (4,)
    assert bench.with_updated_state(bench.values()).keys() == bench.values().keys()


def test_a_plugin_is_built_into_the_toy_learner() -> None:
    regularizer = Subject.of(faulty_components.Shrinking)
    assert len(build_bench(regularizer).regularizers) == 1
    assert build_bench(regularizer, without_regularizer=True).regularizers == ()
    for first in (True, False):
        bench = build_chain_bench(Subject.of(ToyDescent), first=first)
        assert isinstance(bench.learner, ToyLearner)
    assert build_bench(LEARNER, "classification", ways=5).spec.outputs == 5


class Metres(ToyCurves):
    """Tasks of a kind that the kit does not know."""

    kind: ClassVar[TaskKind] = replace(REGRESSION, name="metres")


class Measuring(ToyLearner):
    """Solves tasks of that kind only."""

    tags: ClassVar[Tags] = replace(ToyLearner.tags, kinds=frozenset({"metres"}), other_kinds=False)


def test_a_learner_of_a_kind_of_its_own_is_checked_on_an_installed_data_set() -> None:
    with pytest.raises(AssertionError, match="solves metres tasks, but no data set of this kind is installed"):
        build_bench(Subject.of(Measuring))
    bench = build_bench(Subject.of(Measuring, scan().with_plugin("dataset", "metres", Metres)))
    assert bench.spec.kind is Metres.kind
    assert bench.predict(bench.values(), bench.task()).shape == (len(bench.task().query.x), bench.spec.outputs)


def test_only_interaction_gets_a_key_in_evaluation() -> None:
    seen = []

    class Actor(ToyLearner):
        """Notes its keys."""

        tags: ClassVar[Tags] = replace(ToyLearner.tags, kinds=frozenset({"interaction", "regression"}))

        def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any:
            seen.append(key is None)
            return super().predict(values, fast, x)

    for bench in build_benches(Subject.of(Actor)):
        seen.clear()
        bench.predict(bench.values(), bench.task())
        assert set(seen) == {bench.spec.kind.name != "interaction"}


def test_the_first_input_shape_that_a_learner_accepts_is_used() -> None:
    class Images(faulty_learners.Centres):
        """Accepts images of one channel only."""

        def __init__(self, config: object, parts: object) -> None:
            assert parts.spec.x_shape[0] == 1  # type: ignore[attr-defined]
            super().__init__(config, parts)  # type: ignore[arg-type]

    assert build_bench(LEARNER).spec.x_shape == INPUT_SHAPES[0]
    assert build_bench(Subject.of(Images)).spec.x_shape == (1, 16, 16)
    assert build_bench(Subject("learner", "toy", ToyLearner, x_shape=(3, 4))).spec.x_shape == (3, 4)


@pytest.mark.parametrize(
    ("first", "second", "tolerance", "message"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, 0.0, "^$"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2) + 1e-3}, 1e-2, "^$"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2) + 0.5}, 0.0, r"'a'.* differs by up to 0\.5"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, 0.0, "only one side has .*'a'.*'b'"),
        (torch.ones(2), torch.ones(3), 0.0, r"the tensor: torch.float32 \[2\] and torch.float32 \[3\]"),
        (torch.ones(2), torch.ones(2).double(), 1.0, "torch.float64"),
        ([1], [2], 0.0, "1 and 2"),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), 0.0, "^$"),
    ],
)
def test_differences_are_described(first: object, second: object, tolerance: float, message: str) -> None:
    assert re.search(message, difference(first, second, tolerance))
