"""The protocol of learners, its tags, and what a learner is built from."""

from __future__ import annotations

import dataclasses

import pytest

from metaforge.authoring.protocols import Learner, Parts, Tags
from toys import spec


def test_a_learner_of_default_tags_solves_classification_and_needs_no_component() -> None:
    assert Learner.tags == Tags()
    assert Learner.tags.kinds == {"classification"}
    assert Learner.tags.needs == frozenset()
    assert Learner.tags.exact_meta_gradient
    assert Learner.tags.converges_at == 0


def test_tags_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tags().adapts = True  # type: ignore[misc]


def test_a_learner_has_no_batch_norm_and_takes_no_steps_by_default() -> None:
    assert (Learner.norm, Learner.transductive, Learner.steps) == ("none", False, 0)


def test_parts_have_only_a_spec_by_default() -> None:
    parts = Parts(spec())
    assert parts.backbone is None
    assert parts.adapter is None
    assert parts.regularizers == {}
