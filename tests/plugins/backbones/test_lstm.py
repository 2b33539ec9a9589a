"""LSTM: the numbers of `nn.LSTM`, every plan, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from backbone_plans import assert_equal_plans, inputs, size, spec_of
from metaforge.authoring import make_key, seeded
from metaforge.errors import ConfigError
from metaforge_plugins.backbones.lstm import LSTM, LSTMOptions

LENGTH, FEATURES = 7, 3


def network(**options: Any) -> Any:
    with seeded(make_key(0)):
        return LSTM(LSTMOptions(**options)).build(spec_of(LENGTH, FEATURES)).double()


def native(ours: Any, hidden: int, layers: int, bidirectional: bool) -> nn.LSTM:
    """Return torch's LSTM with the weights of ours, whose bias is the sum of two of torch's."""
    theirs = nn.LSTM(FEATURES, hidden, layers, batch_first=True, bidirectional=bidirectional).double()
    state = {}
    for number, layer in enumerate(ours.layers):
        for direction, suffix in zip(layer, ("", "_reverse"), strict=False):
            state[f"weight_ih_l{number}{suffix}"] = direction.weight_ih
            state[f"weight_hh_l{number}{suffix}"] = direction.weight_hh
            state[f"bias_ih_l{number}{suffix}"] = direction.bias
            state[f"bias_hh_l{number}{suffix}"] = torch.zeros_like(direction.bias)
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_it_computes_what_torchs_lstm_does(layers: int, bidirectional: bool) -> None:
    x, options = inputs(4, LENGTH, FEATURES), {"hidden": 5, "layers": layers, "bidirectional": bidirectional}
    ours = network(**options)
    states, (last, _) = native(ours, 5, layers, bidirectional)(x)
    expected = torch.cat([*last[-2 if bidirectional else -1 :]], -1)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    mean = network(**options, pooling="mean")
    torch.testing.assert_close(mean(x), states.mean(1), rtol=1e-12, atol=1e-12)
    assert size(ours) == size(native(ours, 5, layers, bidirectional)) - layers * (1 + bidirectional) * 4 * 5


def test_the_forget_gate_starts_more_open() -> None:
    plain, opened = network(hidden=4), network(hidden=4, forget=2.0)
    x = inputs(2, LENGTH, FEATURES)
    assert not torch.allclose(plain(x), opened(x))
    with torch.no_grad():
        plain.layers[0][0].bias[4:8] += 2
    torch.testing.assert_close(plain(x), opened(x), rtol=1e-12, atol=1e-12)


def test_initial_values_are_uniform_by_the_size_of_the_state() -> None:
    for value in network(hidden=25, layers=2).parameters():
        assert 0.19 < float(value.detach().abs().max()) <= 0.2
        assert abs(float(value.detach().std()) / (0.2 / 3**0.5) - 1) < 0.15


def test_dropout_is_between_layers() -> None:
    assert torch.equal(network(dropout=0.5)(inputs(2, LENGTH, FEATURES)), network()(inputs(2, LENGTH, FEATURES)))
    two = network(dropout=0.5, layers=2)
    with seeded(make_key(1)):
        assert not torch.equal(two(inputs(2, LENGTH, FEATURES)), two.eval()(inputs(2, LENGTH, FEATURES)))


@pytest.mark.parametrize(
    "options", [{}, {"layers": 2, "bidirectional": True, "dropout": 0.3, "pooling": "mean"}], ids=["plain", "all"]
)
def test_every_plan_is_equal(options: dict[str, Any]) -> None:
    assert_equal_plans(LSTM(LSTMOptions(hidden=4, **options)), LENGTH, FEATURES)


def test_inputs_other_than_sequences_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[length, features\].*\[1, 28, 28\]"):
        LSTM(LSTMOptions()).build(spec_of(1, 28, 28))
