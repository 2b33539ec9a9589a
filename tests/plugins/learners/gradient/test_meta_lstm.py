"""The LSTM meta-learner: its meta-gradient is that of plain PyTorch, and its evaluation sees each query alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Params
from metaforge_plugins.adapters.lstm_optimizer import LSTMOptimizer
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.meta_lstm import MetaLSTM
from toys import POLICIES, assert_equal_steps, fresh, learner, smooth, step, task, tasks

KEY = make_key(0)
HIDDEN = 3
NAMES = ("model.0.0.weight", "model.0.0.bias", "model.2.weight", "model.2.bias")
META = ("lstm.weight", "lstm.bias", "forget.weight", "forget.bias", "input.weight", "input.bias")
ADAPTER = "adapters.lstm-optimizer"


def built(**options: Any) -> Any:
    """Return the learner with a small LSTM."""
    adapter = LSTMOptimizer(LSTMOptimizer.Config(hidden=HIDDEN, forget_bias=(2, 3), input_bias=(-2, -1)))
    return learner(MetaLSTM, adapters={"lstm-optimizer": adapter}, **options)


def lively(one: Any) -> Params:
    """Return values whose LSTM is not close to zero."""
    values, draw = fresh(one), torch.Generator().manual_seed(4)
    noise = {n: 0.5 * torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in values.items() if ADAPTER in n}
    return values | {name: values[name] + value for name, value in noise.items()}


def logits(weights: list[Tensor], x: Tensor) -> Tensor:
    """Return the logits of the toy network in plain PyTorch."""
    first, shift, second, bias = weights
    return torch.tanh(x @ first.T + shift) @ second.T + bias


def scaled(x: Tensor) -> Tensor:
    """Return the preprocessed numbers `[n, 2]`; all of them are above e^-10."""
    assert (x.abs() > 4.6e-5).all()
    return torch.stack([x.abs().log() / 10, x.sign()], -1)


def reference(theta: list[Tensor], meta: list[Tensor]) -> Tensor:
    """Return the query loss of the paper's algorithm in plain PyTorch, with the LSTM cell of torch."""
    lstm, lstm_bias, *gates = meta
    cell = torch.cat([weight.flatten() for weight in theta])
    h = c = cell.new_zeros(len(cell), HIDDEN)
    f = i = torch.zeros_like(cell)
    for _ in range(3):
        support = F.cross_entropy(logits(theta, task().support.x), task().support.y)
        grads = torch.autograd.grad(support, theta, retain_graph=True)
        gradient = torch.cat([grad.flatten() for grad in grads])
        x = torch.cat([scaled(gradient), scaled(support.detach().expand_as(gradient))], -1)
        h, c = torch.lstm_cell(x, (h, c), lstm[:, :4], lstm[:, 4:], lstm_bias, torch.zeros_like(lstm_bias))
        f = (torch.cat([h, cell[:, None], f[:, None]], -1) @ gates[0] + gates[1]).sigmoid()
        i = (torch.cat([h, cell[:, None], i[:, None]], -1) @ gates[2] + gates[3]).sigmoid()
        cell = f * cell - i * gradient
        theta = [p.reshape(w.shape) for p, w in zip(cell.split([w.numel() for w in theta]), theta, strict=True)]
    return F.cross_entropy(logits(theta, task().query.x), task().query.y)


def test_the_meta_gradient_is_that_of_plain_autograd() -> None:
    one = built(steps=3)
    values = lively(one)
    names = [*NAMES, *(f"{ADAPTER}.{name}" for name in META)]
    leaves = [values[name].clone().requires_grad_() for name in names]
    total = reference(leaves[:4], leaves[4:])
    found, loss = torch.func.grad_and_value(lambda v: one.loss(v, task(), KEY)[0])(values)
    torch.testing.assert_close(loss, total.detach())
    for name, expected in zip(names, torch.autograd.grad(total, leaves), strict=True):
        assert expected.abs().max() > 1e-6, name
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", POLICIES)
def test_every_plan_gives_the_same(norm: str) -> None:
    one = built(backbone=smooth("batch"), steps=2, norm=norm)
    values, batch = lively(one), tasks(4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        for chunk in (None, 3):
            assert_equal_steps(step(one, values, batch, plan, chunk=chunk), looped)
    assert set(looped.metrics) == {"score"}


def test_with_plain_descent_it_is_first_order_maml_to_the_bit() -> None:
    options: dict[str, Any] = {"adapters": {"sgd": SGD(SGDOptions(lr=0.3))}, "backbone": smooth("batch"), "steps": 2}
    ours, theirs = learner(MetaLSTM, **options), learner(FOMAML, **options, norm="support", adapt="all")
    values, batch = fresh(ours), tasks(3)
    found, expected = step(ours, values, batch), step(theirs, values, batch)
    assert torch.equal(found.losses, expected.losses)
    assert all(torch.equal(found.grads[name], grad) for name, grad in expected.grads.items())


def test_queries_are_normalised_by_the_support_set_so_each_is_predicted_alone() -> None:
    one = built(backbone=smooth("batch"))
    values, example = fresh(one), task()
    assert (one.norm, one.transductive) == ("support", False)
    fast = one.adapt(values, example.support)
    together = one.predict(values, fast, example.query.x)
    alone = torch.cat([one.predict(values, fast, x[None]) for x in example.query.x])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-14)


def test_the_lstm_moves_all_parameters_those_of_norm_layers_too() -> None:
    one = built(backbone=smooth("batch"))
    values = fresh(one)
    fast = one.adapt(values, task().support)
    network = [name for name in values if name.startswith("model.")]
    assert len(network) == 6
    assert all(not torch.equal(fast[name], values[name]) for name in network)
    assert not any(ADAPTER in name for name in fast)


def test_second_order_is_refused() -> None:
    with pytest.raises(ValidationError, match="first-order"):
        MetaLSTM.Config(adjoint="unroll")
