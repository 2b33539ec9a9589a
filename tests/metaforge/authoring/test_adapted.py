"""Which values an inner loop adapts, and what is refused."""

from __future__ import annotations

import pytest
from torch import nn

from metaforge.authoring.adapted import adapted_names, require_dependence
from metaforge.authoring.model import Model
from metaforge.authoring.network import with_head
from metaforge.errors import ConfigError
from toys import FEATURES, smooth

MODEL = Model(with_head(smooth("batch"), 3, (FEATURES,)), x_shape=(FEATURES,))


def test_what_is_frozen_is_left_out() -> None:
    assert adapted_names(MODEL, "head", ()) == ("model.2.weight", "model.2.bias")
    assert adapted_names(MODEL, "head", ["*.bias"]) == ("model.2.weight",)


def test_nothing_to_adapt_is_refused_unless_something_else_is_adapted() -> None:
    with pytest.raises(ConfigError, match="would adapt is frozen") as caught:
        adapted_names(MODEL, "head", ["model.2.*"])
    assert caught.value.where == "train.freeze"
    norm_only = Model(lambda: nn.Sequential(nn.BatchNorm1d(FEATURES)))
    with pytest.raises(ConfigError, match="the network has no value that adapt='weights' stands for") as caught:
        adapted_names(norm_only, "weights", ())
    assert caught.value.where == "learner.adapt"
    assert adapted_names(norm_only, "weights", (), optional=True) == ()
    assert adapted_names(MODEL, "head", ["model.2.*"], optional=True) == ()


def test_a_minimum_must_depend_on_something_that_is_trained() -> None:
    require_dependence(["model.0.weight", "model.2.weight"], ["model.2.weight"])
    with pytest.raises(ConfigError, match="the meta-gradient is zero") as caught:
        require_dependence(["model.2.weight"], ["model.2.weight", "context"])
    assert "learner.proximal above 0" in caught.value.remedy
