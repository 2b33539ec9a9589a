"""What neural processes share: their contexts, the evidence lower bound, and estimates of likelihoods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.func import vmap
from torch.nn import functional as F

from metaforge.authoring import (
    Examples,
    LatentProcessLearner,
    Params,
    Task,
    TaskShape,
    TaskSpec,
    fold_in,
    make_key,
    mean_code,
    normal,
)
from metaforge.authoring.protocols import Parts
from toys import assert_equal_steps, assert_true_gradient, fresh, keys, learner, step, task, tasks

KEY = make_key(0)


class Plain(LatentProcessLearner):
    """A process whose decoder reads x and z alone."""

    prefix = "plain"

    def context(self, values: Params, support: Examples, weights: Tensor) -> Params:
        return {}

    def codes(self, values: Params, fast: Params, x: Tensor) -> Tensor:
        return x.flatten(1)


def built(**options: Any) -> Any:
    """Return a small process."""
    return learner(Plain, kind="regression", **({"encoder": (8, 8), "decoder": (8,), "latent": 3} | options))


def wave(seed: int = 0, shots: int = 5) -> Task:
    """Return a toy task."""
    return task(seed, "regression", shots=shots)


def joined(example: Task) -> Examples:
    """Return all examples of a task."""
    return Examples(*(torch.cat(pair) for pair in zip(example.support, example.query, strict=True)))


def network(values: Params, name: str, x: Tensor) -> Tensor:
    """Return the output of a network of two layers."""
    first, second = ((values[f"plain.{name}.{i}.weight"], values[f"plain.{name}.{i}.bias"]) for i in (0, 1))
    return F.linear(F.linear(x, *first).relu(), *second)


def reference_posterior(values: Params, examples: Examples) -> Normal:
    """Return q(z | examples) in plain PyTorch."""
    mean, s = network(values, "latent", network(values, "latent_encoder", torch.cat([*examples], -1)).mean(0)).chunk(2)
    return Normal(mean, 0.1 + 0.9 * torch.sigmoid(s))


def reference_density(values: Params, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the sum of log N(y; μ, σ) over all targets for one z, in plain PyTorch."""
    mean, s = network(values, "decoder", torch.cat([x, z.expand(len(x), -1)], -1)).chunk(2, -1)
    return Independent(Normal(mean, 0.1 + 0.9 * F.softplus(s)), 1).log_prob(y)


@pytest.mark.parametrize("vary", [False, True])
def test_the_loss_is_the_negative_evidence_lower_bound(vary: bool) -> None:
    one = built(vary_context=vary)
    values, example = fresh(one), wave()
    key = make_key(3)
    chosen = one.context_weights(5, key, example.support.x).bool()
    assert vary == (int(chosen.sum()) < 5)
    context = Examples(*(part[chosen] for part in example.support))
    prior, posterior = (reference_posterior(values, part) for part in (context, joined(example)))
    z = posterior.mean + posterior.stddev * normal(fold_in(key, "latent"), (3,), torch.float64)
    divergence = kl_divergence(posterior, prior).sum()
    bound = reference_density(values, *joined(example), z).sum() - divergence
    loss, aux = one.loss(values, example, key)
    torch.testing.assert_close(loss, -bound / 16, rtol=1e-12, atol=0)
    torch.testing.assert_close(aux.metrics["divergence"], divergence, rtol=1e-12, atol=0)
    decoded = network(values, "decoder", torch.cat([example.query.x, prior.mean.expand(3, -1)], -1))
    mean, deviation = decoded[:, :2], 0.1 + 0.9 * F.softplus(decoded[:, 2:])
    torch.testing.assert_close(aux.metrics["score"], (mean - example.query.y).square().mean())
    fast = one.adapt(values, context)
    torch.testing.assert_close(one.predict(values, fast, example.query.x), mean)
    torch.testing.assert_close(one.deviation(values, fast, example.query.x), deviation)


@pytest.mark.parametrize("vary", [False, True])
def test_finite_differences(vary: bool) -> None:
    # A seed at which no unit stands at its kink within the difference's width.
    one = built(vary_context=vary)
    values, example = fresh(one), wave()
    assert_true_gradient(lambda v: one.loss(v, example, KEY)[0], values)


def test_vectorised_equals_loop() -> None:
    one = built()
    values, batch = fresh(one), tasks(4, "regression", shots=5)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
    assert set(looped.metrics) == {"score", "divergence"}


def test_the_divergence_is_zero_if_all_targets_are_the_context() -> None:
    one = built(vary_context=False)
    values, example = fresh(one), wave()
    nothing = Examples(example.query.x[:0], example.query.y[:0])
    assert one.loss(values, Task(example.support, nothing), KEY)[1].metrics["divergence"].abs() < 1e-15
    assert one.loss(values, example, KEY)[1].metrics["divergence"] > 1e-6


def test_order_and_duplicates_of_the_context_do_not_matter() -> None:
    one = built()
    values, support = fresh(one), wave().support
    expected = one.adapt(values, support)
    for chosen in (torch.tensor([3, 1, 0, 4, 2]), torch.arange(5).repeat(3)):
        found = one.adapt(values, Examples(support.x[chosen], support.y[chosen]))
        for name in ("mean", "deviation"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)
    assert expected["deviation"].min() > 0.1
    assert expected["deviation"].max() < 1


def test_the_likelihood_of_each_target_is_that_of_a_mixture() -> None:
    one = built(samples=7)
    values, example = fresh(one), wave()
    prior = reference_posterior(values, example.support)
    noise = normal(fold_in(KEY, "samples"), (7, 3), torch.float64)
    log_p = torch.stack([reference_density(values, *example.query, prior.mean + prior.stddev * e) for e in noise])
    found = one.measure(values, example, KEY)
    torch.testing.assert_close(found["log_likelihood"], log_p.exp().mean(0).log().mean(), rtol=1e-12, atol=0)
    assert set(found) == {"log_likelihood", "joint_log_likelihood", "coverage_95"}
    other = one.measure(values, example, make_key(1))
    assert not torch.isclose(found["log_likelihood"], other["log_likelihood"])


def test_likelihoods_approach_the_integral_over_z() -> None:
    one = built(samples=10_000, latent=1)
    values, example = fresh(one), wave(3)
    # Weights with which the two posteriors of z differ.
    values = {name: (2.5 if ".latent" in name else 1) * value for name, value in values.items()}
    prior = reference_posterior(values, example.support)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(-1)
    z = prior.mean + prior.stddev * z
    weight = (prior.log_prob(z) + (z[1] - z[0]).log()).squeeze(-1)
    log_p = torch.stack([reference_density(values, *example.query, one_z) for one_z in z])
    found = one.measure(values, example, KEY)
    assert kl_divergence(reference_posterior(values, joined(example)), prior).sum() > 0.5
    joint = (log_p.sum(1) + weight).logsumexp(0) / 3
    torch.testing.assert_close(found["joint_log_likelihood"], joint, rtol=0, atol=5e-3)
    each = (log_p + weight.unsqueeze(-1)).logsumexp(0).mean()
    torch.testing.assert_close(found["log_likelihood"], each, rtol=0, atol=5e-3)


def test_measures_are_the_same_for_many_tasks_together() -> None:
    one = built(samples=4)
    values, batch = fresh(one), tasks(3, "regression", shots=5)
    together = vmap(lambda example, key: one.measure(values, example, key))(batch, keys(3))
    for i, key in enumerate(keys(3)):
        for name, value in one.measure(values, task(i, "regression", shots=5), key).items():
            torch.testing.assert_close(together[name][i], value, rtol=1e-9, atol=1e-12)


def test_the_context_varies_from_one_to_all_examples_under_a_key() -> None:
    one, like = built(), torch.ones((), dtype=torch.float64)
    weights = torch.stack([one.context_weights(5, make_key(i), like) for i in range(1000)])
    assert [abs(float((weights.sum(1) == n).double().mean()) - 0.2) < 0.06 for n in range(1, 6)] == [True] * 5
    assert (weights.mean(0) - 0.6).abs().max() < 0.06
    assert torch.equal(one.context_weights(5, None, like), torch.ones(5, dtype=torch.float64))
    assert torch.equal(built(vary_context=False).context_weights(5, KEY, like), torch.ones(5, dtype=torch.float64))
    assert one.context_weights(0, KEY, like).shape == (0,)


def test_the_mean_of_no_codes_is_zero() -> None:
    assert torch.equal(mean_code(torch.ones(0, 4), torch.ones(0)), torch.zeros(4))
    assert torch.equal(mean_code(torch.ones(2, 4), torch.zeros(2)), torch.zeros(4))


def test_inputs_of_any_shape_are_flattened_and_weights_come_from_the_key() -> None:
    one = Plain(
        Plain.Config(encoder=(6,), decoder=(5,), latent=2), Parts(TaskSpec("regression", (2, 3), 4, TaskShape(1, 1, 1)))
    )
    first, again, other = (one.init(make_key(i)) for i in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert first["plain.latent_encoder.0.weight"].shape == (6, 10)
    assert first["plain.decoder.1.weight"].shape == (8, 5)
    assert first["plain.decoder.0.weight"].abs().max() <= 8**-0.5
    support = Examples(torch.zeros(3, 2, 3), torch.zeros(3, 4))
    assert one.predict(first, one.adapt(first, support), torch.zeros(7, 2, 3)).shape == (7, 4)


def test_a_subclass_must_say_what_the_decoder_reads() -> None:
    class Nothing(LatentProcessLearner):
        prefix = "nothing"

    with pytest.raises(TypeError, match="codes"):
        Nothing(Nothing.Config(), Parts(TaskSpec("regression", (1,), 1, TaskShape(1, 1, 1))))  # type: ignore[abstract]
