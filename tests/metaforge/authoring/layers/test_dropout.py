"""Dropout by the key of the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaforge.authoring.keys import make_key
from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.dropout import Dropout
from metaforge.authoring.protocols import Pass


def dropped(at: Pass, x: Tensor, name: str = "layer", *, channels: bool = False) -> Any:
    """Return the output of a dropout layer of rate 0.4 for `x`."""
    context = ForwardContext("transductive")
    with context.forward_pass(at, {}):
        return Dropout(0.4, name, context, channels=channels)(x)


def test_dropout_follows_its_key() -> None:
    x, at = torch.ones(50, 40, dtype=torch.float64), Pass(make_key(0), 1, "support")
    out = dropped(at, x)
    assert set(out.unique().tolist()) == {0.0, 1 / 0.6}
    assert abs(float((out == 0).double().mean()) - 0.4) < 0.05
    assert torch.equal(out, dropped(at, x))
    others = [at._replace(step=2), at._replace(role="query"), at._replace(key=make_key(1))]
    assert not any(torch.equal(out, dropped(other, x)) for other in others)
    assert not torch.equal(out, dropped(at, x, "other"))
    assert torch.equal(dropped(at._replace(key=None), x), x)


def test_channels_are_dropped_as_a_whole() -> None:
    out = dropped(Pass(make_key(0)), torch.ones(50, 40, 2, 3, dtype=torch.float64), channels=True)
    assert (out == out[:, :, :1, :1]).all()
    assert abs(float((out == 0).double().mean()) - 0.4) < 0.05
