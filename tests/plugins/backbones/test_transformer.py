"""Transformer: the numbers of `nn.TransformerEncoder`, the positions, every plan, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from backbone_plans import assert_equal_plans, inputs, size, spec_of
from metaforge.authoring import make_key, seeded
from metaforge.errors import ConfigError
from metaforge_plugins.backbones.transformer import Transformer, TransformerOptions, sinusoids

LENGTH, FEATURES, WIDTH = 7, 3, 12


def network(**options: Any) -> Any:
    with seeded(make_key(0)):
        config = TransformerOptions(**{"width": WIDTH, "heads": 3, **options})
        return Transformer(config).build(spec_of(LENGTH, FEATURES)).double()


def native(ours: Any, activation: str) -> nn.TransformerEncoder:
    """Return torch's pre-norm encoder with the weights of our blocks and of our last norm."""
    layer = nn.TransformerEncoderLayer(WIDTH, 3, 2 * WIDTH, 0.0, activation, batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, len(ours.blocks), nn.LayerNorm(WIDTH), enable_nested_tensor=False).double()
    names = {
        "attention.project.": "self_attn.in_proj_",
        "attention.out.": "self_attn.out_proj.",
        "first.": "linear1.",
        "second.": "linear2.",
    }
    state = {}
    for name, value in {**ours.blocks.state_dict(prefix="layers."), **ours.norm.state_dict(prefix="norm.")}.items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_computes_what_torchs_encoder_does(activation: str) -> None:
    x = inputs(4, LENGTH, FEATURES)
    ours = network(layers=3, expansion=2, activation=activation)
    with torch.no_grad():
        for value in ours.parameters():  # Biases and scales of 0 and 1 would hide mistakes.
            value += 0.1 * inputs(*value.shape, seed=value.numel())
    embedded = x @ ours.embed.weight.T + ours.embed.bias + ours.positions
    expected = native(ours, activation)(embedded)
    torch.testing.assert_close(ours(x), expected.mean(1), rtol=1e-12, atol=1e-12)
    ours.pooling = "last"
    torch.testing.assert_close(ours(x), expected[:, -1], rtol=1e-12, atol=1e-12)


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(6, 5)
    for place in range(6):
        for i in range(5):
            angle = place / 10_000 ** (2 * (i // 2) / 5)
            assert float(table[place, i]) == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)


@pytest.mark.parametrize(("positions", "is_order_seen"), [("sinusoidal", True), ("learned", True), ("none", False)])
def test_the_order_of_the_inputs_is_seen_through_the_positions_alone(positions: str, is_order_seen: bool) -> None:
    made, x = network(positions=positions), inputs(2, LENGTH, FEATURES)
    assert torch.allclose(made(x), made(x.flip(1)), rtol=1e-9, atol=1e-9) is not is_order_seen
    learned = {name for name, _ in made.named_parameters() if name == "positions"}
    assert learned == ({"positions"} if positions == "learned" else set())
    assert ("positions" in made.state_dict()) is (positions == "learned")


def test_initial_values_are_as_documented() -> None:
    made = network(width=60, heads=3, positions="learned")
    assert 0.015 < float(made.positions.detach().std()) < 0.025
    for module in made.modules():
        if isinstance(module, nn.Linear):
            outputs, before = module.weight.shape
            most = (6 / (outputs + before)) ** 0.5
            largest = float(module.weight.detach().abs().max())
            assert 0.97 * most < largest <= most
            assert bool((module.bias == 0).all())
        if isinstance(module, nn.LayerNorm):
            assert bool((module.weight == 1).all())


def test_parameter_count() -> None:
    block = 4 * WIDTH * WIDTH + 4 * WIDTH + 2 * 4 * WIDTH * WIDTH + 5 * WIDTH + 4 * WIDTH
    assert size(network(layers=2)) == FEATURES * WIDTH + WIDTH + 2 * block + 2 * WIDTH


def test_dropout_is_off_in_evaluation_alone() -> None:
    made, x = network(dropout=0.5), inputs(2, LENGTH, FEATURES)
    with seeded(make_key(1)):
        noisy: Tensor = made(x)
    torch.testing.assert_close(made.eval()(x), network()(x), rtol=0, atol=0)
    assert not torch.allclose(noisy, made(x))


@pytest.mark.parametrize("options", [{}, {"positions": "learned", "pooling": "last", "dropout": 0.3}])
def test_every_plan_is_equal(options: dict[str, Any]) -> None:
    assert_equal_plans(
        Transformer(TransformerOptions(width=4, heads=2, expansion=2, activation="gelu", **options)), LENGTH, FEATURES
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="heads = 5 does not divide width = 12"):
        TransformerOptions(width=12, heads=5)
    with pytest.raises(ConfigError, match=r"\[length, features\].*\[6\]"):
        Transformer(TransformerOptions()).build(spec_of(6))
