"""Tests of subjects: how a plugin is named, which options and inputs it gets, and what happens without its data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import faulty_learners
from metaforge import hookimpl
from metaforge.authoring.protocols import Hook, Options, TaskShape
from metaforge.errors import ConfigError, DataError, PluginError
from metaforge.testing import Subject, checks_for
from metaforge.testing.run_checks import all_checks
from metaforge.testing.toy import ToyClasses, ToyCurves, ToyDescent


def test_a_subject_is_a_name_a_qualified_name_a_class_or_a_subject() -> None:
    for what in ("maml", "learner:maml", "learner:metaforge:maml", "metaforge:maml"):
        subject = Subject.of(what)
        assert (subject.kind, subject.name) == ("learner", "maml")
    assert Subject.of(ToyDescent).kind == "adapter"
    assert Subject.of(subject) is subject


def test_an_unknown_name_is_refused_with_the_most_similar_one() -> None:
    with pytest.raises(PluginError, match="Did you mean 'maml'"):
        Subject.of("mamll")
    with pytest.raises(PluginError, match="Subject\\(kind, name, cls\\)"):
        Subject.of(dict)


def test_a_hook_is_recognised_by_its_base_class_or_its_methods() -> None:
    class Derived(Hook):
        """Has the base class only."""

    class Independent:
        """Has a hook method only."""

        @hookimpl
        def metaforge_run_start(self) -> None: ...

    assert Subject.of(Derived).kind == Subject.of(Independent).kind == "hook"


def test_episodes_have_the_shape_of_the_subject_or_one_that_suits_the_kind(tmp_path: Path) -> None:
    assert Subject.of(ToyClasses).episode_shape() == TaskShape(3, 2, 3)
    assert Subject.of(ToyCurves).episode_shape() == TaskShape(1, 4, 5)
    assert Subject("dataset", "toy", ToyClasses, shape=TaskShape(2, 1, 1)).episode_shape() == TaskShape(2, 1, 1)
    assert Subject.of(ToyClasses).with_root(tmp_path).root == tmp_path


def test_options_and_inputs_of_a_subject_reach_the_plugin() -> None:
    class Images(faulty_learners.Centres):
        """Accepts images of `channels` channels only."""

        class Config(Options):
            channels: int = 1

        def __init__(self, config: Any, parts: Any) -> None:
            super().__init__(config, parts)
            assert parts.spec.x_shape[0] == config.channels

    (check,) = [check for check in all_checks() if check.name == "shapes"]
    check(Subject("learner", "images", Images))
    check(Subject("learner", "images", Images, options={"channels": 2}, x_shape=(2, 5, 5)))
    with pytest.raises(AssertionError):
        check(Subject("learner", "images", Images, options={"channels": 2}))


def test_options_can_be_given_with_a_name_a_class_or_a_subject() -> None:
    assert Subject.of("maml", options={"steps": 4}).config.steps == 4
    few = Subject.of(ToyClasses, options={"x_shape": [3]})
    assert few.config.x_shape == (3,)
    assert Subject.of(few, options={}) is few
    assert Subject.of(few, options={"x_shape": (4,)}).config.x_shape == (4,)
    assert few.with_options({"x_shape": (5,)}).options == {"x_shape": (5,)}
    with pytest.raises(ConfigError, match=r"There is no option 'dataset\.shape'"):
        Subject.of(few, options={"shape": 3})


def test_missing_data_raise_the_error_of_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        Subject.of("dataset:omniglot").with_root(tmp_path).require_data()
    Subject.of("learner:maml").require_data()


def test_other_exceptions_of_a_data_set_are_left_to_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, config: Any, *, root: Path) -> None:
        raise ValueError("oh no")

    monkeypatch.setattr(ToyClasses, "__init__", broken)
    toy = Subject("dataset", "toy", ToyClasses)
    toy.require_data()
    monkeypatch.setattr(ToyClasses, "spec", lambda self, split, shape: sys.exit(0))
    toy.require_data()
    (spec,) = [check for check in checks_for(toy) if check.name == "spec"]
    with pytest.raises(AssertionError, match="dataset 'toy' raised ValueError: oh no"):
        spec(toy)
