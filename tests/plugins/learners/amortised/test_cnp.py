"""Conditional neural process: the density, the symmetries of its context, and how much context it sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import REGRESSION
from metaforge.authoring.protocols import Examples, Parts, Task, TaskShape, TaskSpec
from metaforge.engine.batch import score_tasks
from metaforge_plugins.learners.amortised.cnp import CNP, log_normal
from toys import assert_equal_steps, assert_true_gradient, fresh, keys, learner, step, task, tasks

KEY = make_key(0)


def built(**options: Any) -> Any:
    """Return a small process."""
    return learner(CNP, kind="regression", **({"encoder": (8, 8), "decoder": (8,)} | options))


def wave(seed: int = 0, shots: int = 5) -> Task:
    """Return a toy task."""
    return task(seed, "regression", shots=shots)


@pytest.mark.parametrize("vary", [False, True])
def test_finite_differences(vary: bool) -> None:
    # A seed at which no unit stands at its kink within the difference's width.
    one = built(vary_context=vary)
    values, example = fresh(one), wave()
    assert_true_gradient(lambda v: one.loss(v, example, KEY)[0], values)


@pytest.mark.parametrize("vary", [False, True])
def test_vectorised_equals_loop(vary: bool) -> None:
    one = built(vary_context=vary)
    values, batch = fresh(one), tasks(4, "regression", shots=5)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
    assert set(looped.metrics) == {"score"}


def test_the_loss_is_the_mean_negative_log_density_of_all_targets() -> None:
    one = built(vary_context=False)
    values, example = fresh(one), wave()
    x, y = (torch.cat(pair) for pair in zip(example.support, example.query, strict=True))
    mean, deviation = one.distribution(values, one.adapt(values, example.support), x)
    assert mean.shape == deviation.shape == (8, 2)
    torch.testing.assert_close(one.loss(values, example, KEY)[0], -Normal(mean, deviation).log_prob(y).mean())
    likelihood = Normal(mean[5:], deviation[5:]).log_prob(example.query.y).sum(-1).mean()
    torch.testing.assert_close(one.measure(values, example, KEY)["log_likelihood"], likelihood)
    fast = one.adapt(values, example.support)
    torch.testing.assert_close(one.predict(values, fast, x), mean)
    torch.testing.assert_close(one.deviation(values, fast, x), deviation)


def test_the_deviation_is_at_least_a_tenth_and_bounds_the_density() -> None:
    one = built()
    values = {name: 50 * value for name, value in fresh(one).items()}
    example = wave()
    deviation = one.distribution(values, one.adapt(values, example.support), example.query.x)[1]
    assert deviation.min() >= 0.1
    assert float(log_normal(torch.zeros(1), torch.zeros(1), torch.full((1,), 0.1))) == pytest.approx(1.3836, abs=1e-4)


def test_order_and_duplicates_of_the_context_do_not_matter() -> None:
    one = built()
    values, support = fresh(one), wave().support
    expected = one.adapt(values, support)["representation"]
    for chosen in (torch.tensor([3, 1, 0, 4, 2]), torch.arange(5).repeat(3)):
        found = one.adapt(values, Examples(support.x[chosen], support.y[chosen]))["representation"]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_targets_are_predicted_independently() -> None:
    one = built()
    values, example = fresh(one), wave()
    fast = one.adapt(values, example.support)
    torch.testing.assert_close(
        one.predict(values, fast, example.query.x)[:1], one.predict(values, fast, example.query.x[:1])
    )
    assert not one.transductive


def test_an_empty_context_is_the_zero_code() -> None:
    one = built()
    values = fresh(one)
    nothing = Examples(torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64))
    for key in (None, KEY):
        assert torch.equal(one.adapt(values, nothing, key=key)["representation"], torch.zeros(8, dtype=torch.float64))


def test_the_context_varies_from_one_to_all_examples_under_a_key() -> None:
    one, like = built(), torch.ones((), dtype=torch.float64)
    weights = torch.stack([one.context_weights(5, make_key(i), like) for i in range(1000)])
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    sizes = weights.sum(1)
    assert [abs(float((sizes == n).double().mean()) - 0.2) < 0.06 for n in range(1, 6)] == [True] * 5
    assert (weights.mean(0) - 0.6).abs().max() < 0.06
    assert torch.equal(one.context_weights(5, None, like), torch.ones(5, dtype=torch.float64))
    assert torch.equal(built(vary_context=False).context_weights(5, KEY, like), torch.ones(5, dtype=torch.float64))
    assert torch.equal(
        vmap(lambda key: one.context_weights(5, key, like))(keys(6)),
        torch.stack([one.context_weights(5, k, like) for k in keys(6)]),
    )


def test_context_that_is_not_seen_has_no_influence() -> None:
    one = built()
    values, support = fresh(one), wave().support
    unseen = next(
        key
        for i in range(100)
        if (key := make_key(i)) is not None and one.context_weights(5, key, support.x).sum() == 2
    )
    weights = one.context_weights(5, unseen, support.x)
    changed = Examples(torch.where(weights.bool().unsqueeze(-1), support.x, 9.0), support.y)
    first, second = (one.adapt(values, of, key=unseen)["representation"] for of in (support, changed))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    kept = weights.bool()
    alone = one.adapt(values, Examples(support.x[kept], support.y[kept]))["representation"]
    torch.testing.assert_close(first, alone)


def test_weights_come_from_the_key() -> None:
    one = built()
    first, again, other = (one.init(make_key(i)) for i in (0, 0, 1))
    assert all(name.startswith("cnp.") for name in first)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert first["cnp.encoder.0.weight"].shape == (8, 5)
    assert first["cnp.decoder.1.weight"].shape == (4, 8)
    assert first["cnp.encoder.0.weight"].abs().max() <= 5**-0.5


def test_it_learns_a_task() -> None:
    one = built(vary_context=False)
    values, example = fresh(one), wave()
    before = float(one.loss(values, example, KEY)[0])
    for _ in range(60):
        gradient = grad(lambda v: one.loss(v, example, KEY)[0])(values)
        values = {name: value - 0.05 * gradient[name] for name, value in values.items()}
    assert float(one.loss(values, example, KEY)[0]) < before - 0.3


def gaussian_process(count: int) -> tuple[Task, Tensor]:
    """Return tasks `[count]` from a Gaussian process, and the exact log-likelihood of a query target `[count]`."""
    draw, noise = torch.Generator().manual_seed(0), 0.1
    x = 4 * torch.rand(count, 12, 1, generator=draw, dtype=torch.float64) - 2
    kernel = torch.exp(-0.5 * torch.cdist(x, x).square()) + noise**2 * torch.eye(12, dtype=torch.float64)
    y = torch.linalg.cholesky(kernel) @ torch.randn(count, 12, 1, generator=draw, dtype=torch.float64)
    gain = torch.linalg.solve(kernel[:, :5, :5], kernel[:, :5, 5:]).mT
    mean = gain @ y[:, :5]
    deviation = (kernel[:, 5:, 5:] - gain @ kernel[:, :5, 5:]).diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1)
    exact = Normal(mean, deviation).log_prob(y[:, 5:]).mean((1, 2))
    return Task(Examples(x[:, :5], y[:, :5]), Examples(x[:, 5:], y[:, 5:])), exact


def test_it_approaches_the_exact_posterior_from_below() -> None:
    spec = TaskSpec("regression", (1,), 1, TaskShape(1, 5, 7))
    one = CNP(CNP.Config(encoder=(32, 32), decoder=(32,), vary_context=False), Parts(spec))
    values = {name: value.double().requires_grad_() for name, value in one.init(KEY).items()}
    waves, exact = gaussian_process(2000)
    optimiser = torch.optim.Adam(values.values(), lr=5e-3)
    likelihoods = []
    for first in range(0, 2000 - 64, 16):
        batch = tree_map(lambda t, first=first: t[first : first + 64], waves)
        found = step(one, {name: value.detach() for name, value in values.items()}, batch, "fold")
        for name, value in values.items():
            value.grad = found.grads[name]
        optimiser.step()
        likelihoods.append(-float(found.losses.mean()))
    assert likelihoods[0] + 0.3 < sum(likelihoods[-20:]) / 20
    scored = score_tasks(one, values, waves, keys(2000), plan="vmap", measure=True, kind=REGRESSION)
    assert scored.measures["log_likelihood"].mean() < exact.mean()
