"""The context of a forward pass: it holds what the pass needs, and nothing after it."""

from __future__ import annotations

from contextlib import suppress

import torch

from metaforge.authoring.keys import make_key
from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.protocols import Pass


def test_a_context_is_cleared_when_the_pass_ends_also_by_an_error() -> None:
    context = ForwardContext("running")
    at, values = Pass(make_key(0)), {"b": torch.ones(1)}
    with suppress(RuntimeError), context.forward_pass(at, values):
        assert (context.at, context.values) == (at, values)
        assert [context.use("a"), context.use("a"), context.use("b")] == [0, 1, 0]
        context.state_changes["x"] = context.support_statistics["x"] = torch.ones(1)
        raise RuntimeError
    assert (context.at, context.values, context.use("a")) == (Pass(), {}, 0)
    assert (context.support_statistics, context.state_changes) == ({}, {})
    assert context.policy == "running"


def test_what_a_pass_has_collected_outlives_it_with_its_caller() -> None:
    context = ForwardContext("running")
    with context.forward_pass(Pass(make_key(0)), {}):
        context.state_changes["x"] = torch.ones(1)
        collected = context.state_changes
    assert collected == {"x": torch.ones(1)}
