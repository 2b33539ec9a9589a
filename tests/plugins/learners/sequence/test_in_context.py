"""The in-context learner: what a token sees, the numbers of torch's own attention, and an exact posterior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from metaforge.authoring.keys import fold_in, make_key, permutation
from metaforge.authoring.kinds import CLASSIFICATION, REGRESSION
from metaforge.authoring.protocols import Examples, Kind, Params, Parts, Task, TaskShape, TaskSpec
from metaforge.engine.batch import score_tasks
from metaforge_plugins.learners.sequence.in_context import InContext, log_normal
from toys import assert_equal_steps, assert_true_gradient, fresh, keys, learner, smooth, step, task, tasks

KEY = make_key(0)
KINDS = ("classification", "regression")
both = pytest.mark.parametrize("kind", KINDS)


def built(kind: Kind = "classification", backbone: Any = None, **options: Any) -> Any:
    """Return a small transformer."""
    return learner(
        InContext, kind=kind, backbone=backbone, **{"width": 8, "layers": 2, "heads": 2, "hidden": 6} | options
    )


@both
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_finite_differences(kind: Kind, norm: str) -> None:
    one = built(kind, smooth(norm))
    example, values = task(3, kind, shots=4), fresh(one, 3)
    params = {n: v for n, v in values.items() if not n.startswith("state.")}
    state = {n: v for n, v in values.items() if n.startswith("state.")}
    assert_true_gradient(lambda p: one.loss(p | state, example, KEY)[0], params)


@both
def test_vectorised_equals_loop(kind: Kind) -> None:
    one = built(kind, smooth("batch"))
    values, batch = fresh(one), tasks(4, kind, shots=4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)


def independent(
    one: Any, values: Params, x: Tensor, y: Tensor, asked: Tensor, visible: Tensor, *, causal: bool
) -> Tensor:
    """Return the outputs for queries, all tokens as one sequence, by torch's own layers and attention."""
    n, m, c = len(x), len(asked), one.config
    target = F.one_hot(y, 3).double() if causal else y
    tokens = F.linear(torch.cat([x, asked]), values["token.features.weight"], values["token.features.bias"])
    extra = F.linear(target, values["token.target.weight"], values["token.target.bias"])
    h = tokens + torch.cat([extra, values["token.query"].expand(m, -1)])
    among = torch.ones(n, n).bool().tril() if causal else visible[:1].expand(n, -1) | torch.eye(n).bool()
    mask = torch.cat([torch.cat([among, visible]), torch.cat([torch.zeros(n, m), torch.eye(m)]).bool()], 1)
    for i in range(c.layers):
        normed, merge = (
            F.layer_norm(h, (c.width,), values[f"layer{i}.norm1.weight"], values[f"layer{i}.norm1.bias"]),
            f"layer{i}.merge",
        )
        h = h + F.multi_head_attention_forward(
            normed.unsqueeze(1), normed.unsqueeze(1), normed.unsqueeze(1), c.width, c.heads,
            values[f"layer{i}.attend.weight"], values[f"layer{i}.attend.bias"], None, None, False, 0.0,
            values[f"{merge}.weight"], values[f"{merge}.bias"], attn_mask=~mask, need_weights=False,
        )[0].squeeze(1)  # fmt: skip
        normed = F.layer_norm(h, (c.width,), values[f"layer{i}.norm2.weight"], values[f"layer{i}.norm2.bias"])
        inner = F.gelu(F.linear(normed, values[f"layer{i}.expand.weight"], values[f"layer{i}.expand.bias"]))
        h = h + F.linear(inner, values[f"layer{i}.reduce.weight"], values[f"layer{i}.reduce.bias"])
    h = F.layer_norm(h, (c.width,), values["head.norm.weight"], values["head.norm.bias"])
    return F.linear(h[n:], values["head.weight"], values["head.bias"])


def test_logits_and_gradients_of_a_stream_are_those_of_torchs_attention() -> None:
    one = built(backbone=nn.Flatten)
    values, example = fresh(one), task(1)
    x, y = (torch.cat(pair) for pair in zip(example.support, example.query, strict=True))
    order = permutation(fold_in(KEY, "order"), len(y))
    x, y = x[order], y[order]
    earlier = torch.ones(len(y), len(y)).bool().tril(-1)
    expected = independent(one, values, x, y, x, earlier, causal=True)
    logits, labels, _ = one.stream(values, example, KEY, KEY)
    assert torch.equal(labels, y)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    theirs = F.cross_entropy(independent(one, leaves, x, y, x, earlier, causal=True), y)
    ours = torch.func.grad(lambda v: one.loss(v, example, KEY)[0])(values)
    for name, other in zip(leaves, torch.autograd.grad(theirs, list(leaves.values())), strict=True):
        torch.testing.assert_close(ours[name], other, rtol=1e-9, atol=1e-12)


def test_the_distribution_and_its_gradient_are_those_of_torchs_attention() -> None:
    one = built("regression", nn.Flatten)
    values, example = fresh(one), task(1, "regression", shots=6)
    key = next(key for i in range(50) if one.visible(example.support.x, key := make_key(i)).sum() == 3)
    seen = one.visible(example.support.x, key).expand(6, -1)

    def loss(v: Params) -> Tensor:
        mean, s = independent(one, v, *example.support, example.query.x, seen[:3], causal=False).chunk(2, -1)
        return -Normal(mean, 0.05 + 0.95 * F.softplus(s)).log_prob(example.query.y).mean()

    torch.testing.assert_close(one.loss(values, example, key)[0], loss(values), rtol=1e-10, atol=1e-12)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    ours = torch.func.grad(lambda v: one.loss(v, example, key)[0])(values)
    for name, other in zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True):
        torch.testing.assert_close(ours[name], other, rtol=1e-8, atol=1e-11)


@both
def test_a_query_sees_the_support_examples_and_itself(kind: Kind) -> None:
    one = built(kind, nn.Flatten)
    values, example = fresh(one), task(0, kind, shots=3)
    fast = one.adapt(values, example.support)
    seen = torch.ones(len(example.query.x), len(example.support.x)).bool()
    expected = independent(one, values, *example.support, example.query.x, seen, causal=kind == "classification")
    predicted = one.predict(values, fast, example.query.x)
    torch.testing.assert_close(predicted, expected[:, : one.spec.outputs])
    torch.testing.assert_close(one.predict(values, fast, example.query.x[1:2]), predicted[1:2])
    assert not one.transductive


def test_a_label_never_reaches_the_prediction_of_its_own_example() -> None:
    one = built(backbone=nn.Flatten)
    values, (x, y) = fresh(one), task(0, shots=3).support
    everything = torch.ones(9).bool()

    def outputs(x: Tensor, y: Tensor) -> Tensor:
        memory = one.read(values, x, y, everything)
        return one.answer(values, memory, x, torch.ones(9, 9).bool().tril(-1))

    plain = outputs(x, y)
    for t in range(9):
        changed = y.clone()
        changed[t] = (changed[t] + 1) % 3
        other = outputs(x, changed)
        torch.testing.assert_close(other[: t + 1], plain[: t + 1], rtol=0, atol=1e-14)
        assert not torch.isclose(other[t + 1 :], plain[t + 1 :], rtol=1e-9).all(-1).any()
        gradient = torch.func.grad(lambda x, t=t: outputs(x, y)[t].square().sum())(x)
        assert not gradient[t + 1 :].any()
        assert gradient[: t + 1].any(-1).all()


def test_in_regression_the_context_is_a_set() -> None:
    one = built("regression")
    values, example = fresh(one), task(0, "regression", shots=5)
    expected = one.predict(values, one.adapt(values, example.support), example.query.x)
    order = torch.tensor([3, 1, 0, 4, 2])
    shuffled = one.adapt(values, Examples(*(part[order] for part in example.support)))
    torch.testing.assert_close(one.predict(values, shuffled, example.query.x), expected, rtol=1e-12, atol=1e-14)


def test_context_that_is_not_seen_has_no_influence() -> None:
    one = built("regression", nn.Flatten)
    values, (x, y) = fresh(one), task(0, "regression", shots=6).support
    asked = task(1, "regression").query.x
    visible = torch.tensor([1, 0, 1, 1, 0, 0]).bool()

    def outputs(x: Tensor, y: Tensor, visible: Tensor) -> Tensor:
        return one.answer(values, one.read(values, x, y, visible), asked, visible.expand(3, -1))

    alone = outputs(x[visible], y[visible], torch.ones(3).bool())
    torch.testing.assert_close(outputs(x, y, visible), alone)
    hidden = torch.where(visible.unsqueeze(1), x, 9.0)
    torch.testing.assert_close(outputs(hidden, y, visible), alone)
    # Without any context a prediction depends on the query alone.
    nothing = outputs(x, y, torch.zeros(6).bool())
    torch.testing.assert_close(nothing, outputs(x[:0], y[:0], torch.zeros(0).bool()))
    assert nothing.isfinite().all()


def test_the_context_varies_from_none_to_all_examples_under_a_key() -> None:
    one, support = built("regression"), torch.zeros(4, 3)
    masks = torch.stack([one.visible(support, make_key(i)) for i in range(1000)]).double()
    sizes = masks.sum(1)
    assert all(abs(float((sizes == n).double().mean()) - 0.2) < 0.06 for n in range(5))
    assert (masks.mean(0) - 0.5).abs().max() < 0.06
    assert one.visible(support, None).all()
    assert built("regression", vary_context=False).visible(support, KEY).all()
    batched = vmap(lambda key: one.visible(support, key))(keys(6))
    assert torch.equal(batched, torch.stack([one.visible(support, key) for key in keys(6)]))


def test_measures() -> None:
    one = built("regression")
    values, example = fresh(one), task(0, "regression")
    mean, deviation, _ = one.distribution(values, example, None)
    likelihood = Normal(mean, deviation).log_prob(example.query.y).sum(-1).mean()
    torch.testing.assert_close(one.measure(values, example, KEY)["log_likelihood"], likelihood)
    torch.testing.assert_close(one.predict(values, one.adapt(values, example.support), example.query.x), mean)
    # The bound of the density by the smallest deviation.
    bound = log_normal(torch.zeros(1), torch.zeros(1), torch.full((1,), 0.05))
    assert float(bound) == pytest.approx(2.0768, abs=1e-4)
    of_classes = built()
    values, example = fresh(of_classes), task()
    assert set(of_classes.measure(values, example, KEY)) == {f"instance_{k}" for k in range(1, 6)}


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="width is 10, which is no multiple of the number of heads, 4"):
        InContext.Config(width=10, heads=4)


def lines(count: int, n: int = 6, noise: float = 0.2) -> tuple[Task, Tensor]:
    """Return Bayesian linear regressions in two dimensions, and the exact log-likelihood of a query `[count]`."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, n + 8, 2, generator=draw)
    y = x @ torch.randn(count, 2, 1, generator=draw) + noise * torch.randn(count, n + 8, 1, generator=draw)
    given, asked = x[:, :n], x[:, n:]
    covariance = torch.linalg.inv(given.mT @ given / noise**2 + torch.eye(2))
    mean = asked @ (covariance @ given.mT @ y[:, :n] / noise**2)
    deviation = (noise**2 + (asked @ covariance * asked).sum(-1, keepdim=True)).sqrt()
    exact = Normal(mean, deviation).log_prob(y[:, n:]).mean((1, 2))
    return Task(Examples(given, y[:, :n]), Examples(asked, y[:, n:])), exact


def test_it_approaches_the_exact_posterior_from_below() -> None:
    spec = TaskSpec("regression", (2,), 1, TaskShape(1, 6, 8))
    options = InContext.Config(width=32, layers=2, heads=4, hidden=32, vary_context=False)
    one = InContext(options, Parts(spec, nn.Flatten))
    values = {name: value.requires_grad_() for name, value in one.init(KEY).items()}
    batch, exact = lines(8000)
    optimiser = torch.optim.Adam(values.values(), lr=3e-3)
    for first in range(0, 8000 - 32, 32):
        some = tree_map(lambda t, first=first: t[first : first + 32], batch)
        found = step(one, {name: value.detach() for name, value in values.items()}, some, "fold")
        for name, value in values.items():
            value.grad = found.grads[name]
        optimiser.step()
    final = {name: value.detach() for name, value in values.items()}
    scored = score_tasks(one, final, batch, keys(8000), plan="vmap", measure=True, kind=REGRESSION)
    likelihood, best = float(scored.measures["log_likelihood"].mean()), float(exact.mean())
    # Of the prior alone it is that of a normal distribution with the variance x² + σ².
    assert best - 0.5 < likelihood < best


def test_it_learns_to_read_labels_back() -> None:
    spec = TaskSpec("classification", (8,), 3, TaskShape(3, 1, 3))
    one = InContext(InContext.Config(width=32, layers=2, heads=4, hidden=32), Parts(spec, nn.Flatten))
    values, draw = (
        {name: value.requires_grad_() for name, value in one.init(KEY).items()},
        torch.Generator().manual_seed(0),
    )

    def streams(count: int) -> Task:
        y = torch.arange(3).expand(count, -1)
        centres = torch.randn(count, 3, 8, generator=draw)
        parts = [(centres.repeat_interleave(n, 1), y.repeat_interleave(n, 1)) for n in (1, 3)]
        return Task(*(Examples(x + 0.1 * torch.randn(x.shape, generator=draw), y) for x, y in parts))

    optimiser = torch.optim.Adam(values.values(), lr=3e-3)
    for _ in range(300):
        found = step(one, {name: value.detach() for name, value in values.items()}, streams(32), "fold")
        for name, value in values.items():
            value.grad = found.grads[name]
        optimiser.step()
    final = {name: value.detach() for name, value in values.items()}
    measured = score_tasks(one, final, streams(200), keys(200), plan="vmap", measure=True, kind=CLASSIFICATION).measures
    assert float(measured["instance_1"].mean()) < 0.65
    assert float(measured["instance_2"].mean()) > 0.7
