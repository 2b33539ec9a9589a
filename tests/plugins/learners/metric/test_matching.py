"""Matching networks: fixture F3, the bounds of a softmax of cosines, and full context as a plain module of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import fold_in, make_key, permutation
from metaforge.authoring.protocols import Examples, Params, Parts, Task, TaskShape, TaskSpec
from metaforge_plugins.learners.metric.matching import Matching
from toys import (
    BATCH_POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)


def identity(outputs: int = 2, features: int = 2, **options: Any) -> Matching:
    """Return matching networks on the inputs themselves: the network does nothing."""
    spec = TaskSpec("classification", (features,), outputs, TaskShape(outputs, 1, 1))
    return Matching(Matching.Config(**options), Parts(spec, nn.Identity))


def doubles(*rows: tuple[float, ...]) -> Tensor:
    """Return a matrix in float64."""
    return torch.tensor(rows, dtype=torch.float64)


def probabilities(built: Any, values: Params, support: Examples, x: Tensor) -> Tensor:
    """Return a learner's class probabilities of the queries."""
    found: Tensor = built.predict(values, built.adapt(values, support), x).exp()
    return found


F3 = Examples(doubles((1, 0), (0, 1), (1, 1)), torch.tensor([0, 1, 1]))


def test_f3() -> None:
    expected = doubles((0.371035, 0.628965), (0.371035, 0.628965))
    # The second query is the first one times ten: the length of an embedding does not matter.
    found = probabilities(identity(), {}, F3, doubles((2, 1), (20, 10)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    loss, aux = identity().loss({}, Task(F3, Examples(doubles((2, 1)), torch.tensor([1]))), KEY)
    torch.testing.assert_close(loss, -doubles((0.628965,)).log()[0, 0], rtol=1e-5, atol=0)
    assert aux.metrics["score"] == 1


def test_equal_support_examples_give_the_frequencies_of_their_classes() -> None:
    support = Examples(doubles(*[(3, 1)] * 4), torch.tensor([0, 1, 1, 1]))
    found = probabilities(identity(), {}, support, doubles((1, 0), (0, 1)))
    torch.testing.assert_close(found, doubles((0.25, 0.75), (0.25, 0.75)))


def test_the_largest_probabilities_of_five_classes() -> None:
    built = identity(5, 5)
    opposite = Examples(doubles(*[tuple(float(s) for s in row) for row in -torch.eye(5)]), torch.arange(5))
    opposite.x[0] = -opposite.x[1:].sum(0)
    # One support vector along the query, the others against it.
    line = Examples(doubles((1, 0, 0, 0, 0), *[(-1, 0, 0, 0, 0)] * 4), torch.arange(5))
    assert probabilities(built, {}, line, line.x[:1])[0, 0] == pytest.approx(0.649, abs=5e-4)
    # The best symmetric arrangement, a regular simplex.
    simplex = Examples(torch.eye(5, dtype=torch.float64) - 0.2, torch.arange(5))
    own = probabilities(built, {}, simplex, simplex.x).diagonal()
    torch.testing.assert_close(own, torch.full((5,), 0.466, dtype=torch.float64), rtol=0, atol=5e-4)


def test_a_class_without_support_examples_has_no_probability_and_a_gradient() -> None:
    support = F3._replace(y=torch.tensor([0, 0, 0]))
    x = doubles((2, 1)).requires_grad_()
    log_p = identity().predict({}, identity().adapt({}, support), x)
    assert log_p[0, 1] < -700
    assert log_p[0].softmax(-1)[0] == 1
    (grad,) = torch.autograd.grad(F.cross_entropy(log_p, torch.tensor([1])), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize("full_context", [False, True])
@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str, full_context: bool) -> None:
    built = learner(Matching, backbone=smooth("batch"), norm=norm, full_context=full_context, reads=2, scale=3.0)
    assert_loss_has_its_gradient(built)


@pytest.mark.parametrize("full_context", [False, True])
def test_vectorised_equals_loop(full_context: bool) -> None:
    built = learner(Matching, backbone=smooth("batch"), full_context=full_context, reads=2)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)


def test_support_order_does_not_matter_without_full_context() -> None:
    built = learner(Matching, backbone=smooth("batch"))
    values, example, order = fresh(built), task(), torch.tensor([3, 1, 5, 0, 4, 2])
    shuffled = Examples(*(part[order] for part in example.support))
    expected = probabilities(built, values, example.support, example.query.x)
    torch.testing.assert_close(probabilities(built, values, shuffled, example.query.x), expected)


def test_full_context_with_weights_of_zero_is_none() -> None:
    full, plain = (identity(full_context=on) for on in (True, False))
    values = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in full.init(KEY).items()}
    queries = doubles((2, 1), (-1, 3))
    expected = probabilities(plain, {}, F3, queries)
    torch.testing.assert_close(probabilities(full, values, F3, queries), expected, rtol=1e-12, atol=0)


def test_full_context_is_that_of_the_paper() -> None:
    built = learner(Matching, backbone=lambda: nn.Linear(3, 4), full_context=True, reads=3)
    values, example = fresh(built), task(4)
    w, b = values["model.weight"], values["model.bias"]
    order = permutation(fold_in(make_key(0), "order"), len(example.support.y))
    support, query = example.support.x[order] @ w.T + b, example.query.x @ w.T + b
    size = support.shape[1]
    both = nn.LSTM(size, size, bidirectional=True).double()
    reader = nn.LSTMCell(size, 2 * size).double()  # Of its hidden state, the first half is h and the second is r.
    with torch.no_grad():
        for name, parameter in [*both.named_parameters(), *reader.named_parameters()]:
            parameter.zero_()
            kind = name.partition("_l0")[0].replace("bias_ih", "bias")
            cell = "backward" if name.endswith("reverse") else "forward"
            if "_l0" in name and kind != "bias_hh":
                parameter.copy_(values[f"{cell}.{kind}"])
        for gate in range(4):
            rows, own = slice(2 * gate * size, (2 * gate + 1) * size), slice(gate * size, (gate + 1) * size)
            reader.weight_ih[rows] = values["reader.weight_ih"][own]
            reader.weight_hh[rows] = values["reader.weight_hh"][own]
            reader.bias_ih[rows] = values["reader.bias"][own]
    hidden = both(support)[0]
    g = hidden[:, :size] + hidden[:, size:] + support
    h, c = torch.zeros(2, len(query), 2 * size, dtype=torch.float64)
    for _ in range(3):
        h, c = reader(query, (h, c))
        f = h[:, :size] + query
        h = torch.cat([f, (f @ g.T).softmax(-1) @ g], -1)
    a = F.cosine_similarity(f[:, None], g[None], dim=-1).softmax(-1)
    expected = a @ F.one_hot(example.support.y[order]).double()
    found = probabilities(built, values, example.support, example.query.x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["transductive", "support"])
def test_it_compares_the_features_of_the_network(norm: str) -> None:
    built = learner(Matching, backbone=smooth("batch"), norm=norm)
    values, example = fresh(built), task(shots=1)
    w, b, scale, shift = (values[f"model.{n}"] for n in ("0.weight", "0.bias", "1.weight", "1.bias"))
    support, query = (part.x @ w.T + b for part in example[:2])
    other = query if norm == "transductive" else support
    outputs = [
        torch.tanh((x - of.mean(0)) / (of.var(0, correction=0) + 1e-5).sqrt() * scale + shift)
        for x, of in ((support, support), (query, other))
    ]
    expected = F.cosine_similarity(outputs[1][:, None], outputs[0][None], dim=-1).log_softmax(-1)
    found = built.predict(values, built.adapt(values, example.support), example.query.x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
