"""Plain gradient descent."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from metaforge.authoring.descent import Chain
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from toys import THETA, A, H, close, inner_step


def test_the_update_is_rate_times_gradient() -> None:
    updates, state = SGD(SGDOptions(lr=0.1)).update({}, {"w": H @ (THETA - A)}, {"kept": THETA}, {"w": THETA}, 0)
    close(THETA - updates["w"], 0.475, -0.075)
    assert state == {"kept": THETA}


def test_it_learns_and_carries_nothing() -> None:
    chain = Chain({"sgd": SGD(SGDOptions())})
    assert chain.init({"w": THETA}) == chain.start({}, {"w": THETA}) == chain.carry({}, {}) == {}


def test_the_rate_is_checked() -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            SGDOptions(lr=wrong)
    assert torch.equal(SGD(SGDOptions(lr=0.0)).update({}, {"w": THETA}, {}, {}, inner_step())[0]["w"], 0 * THETA)
