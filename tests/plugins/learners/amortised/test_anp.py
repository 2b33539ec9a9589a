"""Attentive neural process: its attention as torch computes it, and the symmetries of its context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Params, Task
from metaforge_plugins.learners.amortised.anp import ANP
from metaforge_plugins.learners.amortised.np import NP
from toys import assert_equal_steps, assert_true_gradient, fresh, learner, step, task, tasks

KEY = make_key(0)
SIZES = {"encoder": (8, 8), "decoder": (8,), "latent": 3, "samples": 4}
LAYERS = (0, 2)


def built(**options: Any) -> Any:
    """Return a small process."""
    return learner(ANP, kind="regression", **(SIZES | {"heads": 2} | options))


def wave(seed: int = 0, shots: int = 5) -> Task:
    """Return a toy task."""
    return task(seed, "regression", shots=shots)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(values: Params, name: str) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of the projections of queries, keys, values and output."""
    places = (f"anp.{name}.{part}.0" for part in ("queries", "keys", "values", "output"))
    return [(values[f"{place}.weight"], values[f"{place}.bias"]) for place in places]


def reference(values: Params, name: str, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return multi-head attention, one query, one head and one example at a time."""
    of_q, of_k, of_v, of_output = parts(values, name)
    q, k, v = (x @ weight.T + bias for x, (weight, bias) in zip((q, k, v), (of_q, of_k, of_v), strict=True))
    size = q.shape[1] // heads
    rows = []
    for query in q:
        row = []
        for head in (slice(size * i, size * (i + 1)) for i in range(heads)):
            weights = torch.stack([(query[head] @ key[head] / size**0.5).exp() for key in k])
            row.append(sum(w * value[head] for w, value in zip(weights / weights.sum(), v, strict=True)))
        rows.append(torch.cat(row))
    weight, bias = of_output
    return torch.stack(rows) @ weight.T + bias


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_attention_is_that_of_the_formula_and_of_torch(heads: int) -> None:
    one = built(heads=heads)
    values = {name: 3 * value for name, value in fresh(one).items()}
    q, k, v = draw(3, 8), draw(5, 8, seed=1), draw(5, 8, seed=2)
    found = one.attend(values, "attention", q, k, v, torch.ones(5))
    expected = reference(values, "attention", q, k, v, heads)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    weights, biases = zip(*parts(values, "attention"), strict=True)
    of_torch, _ = F.multi_head_attention_forward(
        *(q, k, v, 8, heads, None, torch.cat(biases[:3]), None, None, False, 0.0, weights[3], biases[3]),
        use_separate_proj_weight=True,
        **{f"{name}_proj_weight": weight for name, weight in zip("qkv", weights, strict=False)},
    )
    torch.testing.assert_close(found, of_torch, rtol=1e-12, atol=1e-13)


def test_attention_to_examples_of_weight_zero() -> None:
    one = built()
    values = fresh(one)
    q, k, v = draw(3, 8), draw(5, 8, seed=1), draw(5, 8, seed=2)
    weights = torch.tensor([1.0, 0, 1, 0, 1])
    found = one.attend(values, "attention", q, k, v, weights)
    torch.testing.assert_close(found, one.attend(values, "attention", q, k[::2], v[::2], torch.ones(3)))


@pytest.mark.parametrize("layers", LAYERS)
def test_finite_differences(layers: int) -> None:
    # A seed at which no unit stands at its kink within the difference's width.
    one = built(self_attention=layers)
    values, example = fresh(one), wave()
    assert_true_gradient(lambda v: one.loss(v, example, KEY)[0], values)


@pytest.mark.parametrize("layers", LAYERS)
def test_vectorised_equals_loop(layers: int) -> None:
    one = built(self_attention=layers)
    values, batch = fresh(one), tasks(4, "regression", shots=5)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)


@pytest.mark.parametrize("layers", LAYERS)
def test_order_and_duplicates_of_the_context_do_not_matter(layers: int) -> None:
    one = built(self_attention=layers)
    values, example = fresh(one), wave()

    def outputs(support: Examples) -> tuple[Tensor, ...]:
        fast = one.adapt(values, support)
        codes = one.codes(values, fast, example.query.x)
        return fast["mean"], fast["deviation"], codes, one.predict(values, fast, example.query.x)

    expected = outputs(example.support)
    for chosen in (torch.tensor([3, 1, 0, 4, 2]), torch.arange(5).repeat(3)):
        found = outputs(Examples(*(part[chosen] for part in example.support)))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layers", LAYERS)
def test_context_that_is_not_seen_has_no_influence(layers: int) -> None:
    one = built(self_attention=layers)
    values, example = fresh(one), wave()
    support, x = example.support, example.query.x
    key = next(key for key in map(make_key, range(100)) if one.context_weights(5, key, support.x).sum() == 2)
    kept = one.context_weights(5, key, support.x).bool()
    found = one.adapt(values, support, key=key)
    alone = one.adapt(values, Examples(support.x[kept], support.y[kept]))
    for name in ("mean", "deviation"):
        torch.testing.assert_close(found[name], alone[name], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(one.predict(values, found, x), one.predict(values, alone, x), rtol=1e-12, atol=1e-14)


def test_targets_are_predicted_independently() -> None:
    one = built(self_attention=1)
    values, example = fresh(one), wave()
    fast = one.adapt(values, example.support)
    alone, together = (one.predict(values, fast, x) for x in (example.query.x[:1], example.query.x))
    torch.testing.assert_close(alone, together[:1])
    assert not one.transductive


def test_with_uniform_attention_it_is_a_neural_process() -> None:
    one, other = built(), learner(NP, kind="regression", **SIZES)
    values, example = fresh(one), wave()
    identity, zeros = torch.eye(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    for part, weight in (("queries", 0 * identity), ("values", identity), ("output", identity)):
        values |= {f"anp.attention.{part}.0.weight": weight, f"anp.attention.{part}.0.bias": zeros}
    shared = {f"np{name.removeprefix('anp')}": value for name, value in values.items()}
    names = other.init(KEY)
    shared = {name: value for name, value in shared.items() if name in names}
    assert shared.keys() == names.keys()
    for i in range(4):
        losses = (one.loss(values, example, make_key(i))[0], other.loss(shared, example, make_key(i))[0])
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-14)
    for name, value in one.measure(values, example, KEY).items():
        torch.testing.assert_close(value, other.measure(shared, example, KEY)[name], rtol=1e-12, atol=1e-14)


def test_an_empty_context() -> None:
    one = built(self_attention=1)
    values, example = fresh(one), wave()
    nothing = Examples(example.support.x[:0], example.support.y[:0])
    for key in (None, KEY):
        fast = one.adapt(values, nothing, key=key)
        assert one.predict(values, fast, example.query.x).isfinite().all()


def test_heads_share_the_units() -> None:
    with pytest.raises(ValidationError, match="8 units of the last encoder layer cannot be divided among 3 heads"):
        ANP.Config(encoder=(6, 8), heads=3)


def test_sharp_attention_fits_the_context_where_a_mean_code_cannot() -> None:
    """After a few steps on one task, targets at the context's inputs are predicted from their own codes."""
    errors = {}
    for cls, options in ((ANP, {"heads": 2}), (NP, {})):
        one = learner(cls, kind="regression", **(SIZES | options | {"encoder": (16, 16), "vary_context": False}))
        example = wave(shots=12)
        example = Task(example.support, example.support)
        values = {name: value.requires_grad_() for name, value in fresh(one).items()}
        optimiser = torch.optim.Adam(values.values(), lr=1e-2)
        for i in range(150):
            loss, aux = one.loss(values, example, make_key(i))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        errors[cls] = aux.metrics["score"].item()
    assert errors[ANP] < 0.9 * errors[NP]
