"""The LSTM cell computes what torch's does, also where torch's cannot be vectorised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from metaforge.authoring import LSTMCell, Params, make_key

CELL = LSTMCell("lstm", inputs=3, hidden=4)


def values_of(cell: LSTMCell) -> Params:
    return {name: value.double() for name, value in cell.init(make_key(0)).items()}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def torch_lstm(values: Params, *, bidirectional: bool = False) -> nn.LSTM:
    """Return torch's layer with the weights of the cell, in both directions if it has two."""
    layer = nn.LSTM(3, 4, bidirectional=bidirectional).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            own = {"weight_ih": "weight_ih", "weight_hh": "weight_hh", "bias_ih": "bias"}.get(name.partition("_l0")[0])
            parameter.copy_(values[f"lstm.{own}"] if own else torch.zeros_like(parameter))
    return layer


def test_a_sequence_in_both_directions_as_torch_computes_it() -> None:
    values, x = values_of(CELL), draw(6, 2, 3)
    expected = torch_lstm(values, bidirectional=True)(x)[0]
    found = torch.cat([CELL.run(values, x), CELL.run(values, x, reverse=True)], -1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_step_with_and_without_leading_axes() -> None:
    values, x, h, c = values_of(CELL), draw(2, 5, 3), draw(2, 5, 4), draw(2, 5, 4) + 1
    found = CELL(values, x, h, c)
    cell = nn.LSTMCell(3, 4).double()
    layer = torch_lstm(values)
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(layer, f"{name}_l0").data
    expected = cell(x.flatten(0, 1), (h.flatten(0, 1), c.flatten(0, 1)))
    for ours, theirs, one in zip(found, expected, CELL(values, x[0, 0], h[0, 0], c[0, 0]), strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), theirs, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(one, theirs[0], rtol=1e-12, atol=1e-14)


def test_it_can_be_vectorised_over_weights_and_inputs() -> None:
    tasks = [values_of(CELL)] * 2
    stacked = {name: torch.stack([one[name] * k for k, one in enumerate(tasks, 1)]) for name in tasks[0]}
    x = draw(2, 5, 3)
    found = vmap(CELL.run)(stacked, x)
    for index in range(2):
        expected = CELL.run({name: value[index] for name, value in stacked.items()}, x[index])
        torch.testing.assert_close(found[index], expected, rtol=1e-12, atol=1e-14)


def test_a_wider_recurrent_input_and_a_forget_bias() -> None:
    wide = LSTMCell("lstm", inputs=3, hidden=4, recurrent=7, forget=1.0)
    values, x, recurrent, c = values_of(wide), draw(3), draw(7), draw(4)
    assert values["lstm.weight_hh"].shape == (16, 7)
    biased = values | {"lstm.bias": values["lstm.bias"] + torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(4)}
    expected = LSTMCell("lstm", 3, 4, 7)(biased, x, recurrent, c)
    torch.testing.assert_close(wide(values, x, recurrent, c), expected)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias"])
def test_weights_are_drawn_as_torch_draws_them(name: str) -> None:
    value = LSTMCell("lstm", 30, 100).init(make_key(0))[f"lstm.{name}"]
    assert value.abs().max() <= 0.1
    assert value.std() == pytest.approx(0.1 / 3**0.5, rel=0.1)
    assert not torch.equal(value, LSTMCell("other", 30, 100).init(make_key(0))[f"other.{name}"])
