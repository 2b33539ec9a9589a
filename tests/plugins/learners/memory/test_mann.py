"""MANN: fixture F6b of least-recently-used access, and what a stream may and may not know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import vmap

from metaforge.authoring.keys import fold_in, make_key, permutation
from metaforge.authoring.kinds import CLASSIFICATION
from metaforge.authoring.losses import accuracy_by_instance, one_hot
from metaforge.authoring.protocols import Examples, Params, Parts, Task, TaskShape, TaskSpec
from metaforge.engine.batch import meta_gradients, score_tasks
from metaforge_plugins.learners.memory.mann import (
    MANN,
    cosines,
    least_used,
    next_usage,
    write_weights,
)
from toys import assert_equal_steps, assert_loss_has_its_gradient, close, fresh, learner, smooth, step, task, tasks

KEY = make_key(0)
SIZES = {"hidden": 6, "rows": 9, "width": 5, "heads": 2}


def built(backbone: Any = None, **options: Any) -> Any:
    """Return a small MANN."""
    return learner(MANN, backbone=backbone, **SIZES | options)


def outputs(one: Any, values: Params, x: Tensor, y: Tensor) -> Tensor:
    """Return the logits of a stream of examples in the order given."""
    embedded = one.model(values, x)
    return one.run(values, one.empty_memory(embedded), embedded, y)[1]  # type: ignore[no-any-return]


def test_f6b() -> None:
    usage, read = torch.tensor([0.3, 0.1, 0.6, 0.2]), torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    least = least_used(usage, 1)
    close(least, 0, 1, 0, 0)
    writes = write_weights(torch.tensor([0.25]), read, least)
    close(writes, 0.175, 0.775, 0.025, 0.025)
    close(next_usage(usage, torch.full((1, 4), 0.25), writes, 0.95), 0.710, 1.120, 0.845, 0.465)


def test_ties_among_unused_rows_go_by_index() -> None:
    close(least_used(torch.zeros(4), 2), 1, 0, 0, 0, 0, 1, 0, 0)
    close(least_used(torch.tensor([0.5, 0.0, 0.2, 0.0, 0.2]), 3), 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)


def test_no_gradient_passes_the_indicator_of_least_use() -> None:
    usage = torch.tensor([0.3, 0.1, 0.6], requires_grad=True)
    assert not least_used(usage, 1).requires_grad
    assert write_weights(torch.tensor([0.5], requires_grad=True), torch.zeros(1, 3), least_used(usage, 1)).requires_grad


def test_cosines() -> None:
    keys, rows = torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0], [1.0, 1.0], [0.0, -3.0], [0.0, 0.0]])
    close(cosines(keys, rows), 1, 0.5**0.5, 0, 0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_finite_differences(norm: str) -> None:
    # With more rows than writes no row is used again: where the least-used row changes, the loss jumps. Unsharpened
    # cosines keep the fifth derivative, and with it the error of the differences, small.
    assert_loss_has_its_gradient(built(smooth(norm), rows=40, sharpness=1.0))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vectorised_equals_loop(norm: str) -> None:
    one = built(smooth(norm))
    values, batch = fresh(one), tasks(3)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
    assert_equal_steps(step(one, values, batch, "fold", chunk=2), looped)
    keys = torch.stack([make_key(5, i) for i in range(3)])
    ours, theirs = (
        score_tasks(one, values, batch, keys, plan=plan, measure=True, kind=CLASSIFICATION) for plan in ("loop", "vmap")
    )
    torch.testing.assert_close(ours.predictions, theirs.predictions, rtol=1e-9, atol=1e-9)
    assert ours.measures.keys() == theirs.measures.keys() == {f"instance_{k}" for k in range(1, 6)}
    assert all(torch.equal(ours.measures[name], theirs.measures[name]) for name in ours.measures)


def test_a_label_never_reaches_the_prediction_of_its_own_example() -> None:
    one = built()
    values, (x, y) = fresh(one), task(0, shots=4).support
    plain = outputs(one, values, x, y)
    for t in range(len(y)):
        changed = y.clone()
        changed[t] = (changed[t] + 1) % 3
        other = outputs(one, values, x, changed)
        assert torch.equal(other[: t + 1], plain[: t + 1])
        assert not torch.isclose(other[t + 1 :], plain[t + 1 :], rtol=1e-9).all(-1).any()


def test_later_examples_do_not_matter() -> None:
    one = built(smooth("batch"))
    values, (x, y) = fresh(one), task(0, shots=4).support
    torch.testing.assert_close(outputs(one, values, x[:7], y[:7]), outputs(one, values, x, y)[:7])
    assert one.norm == "running"
    assert not one.transductive


def test_every_stream_starts_with_a_wiped_memory() -> None:
    one = built()
    values, example = fresh(one), task()
    first = outputs(one, values, *example.support)
    one.loss(values, task(1), KEY)
    assert torch.equal(outputs(one, values, *example.support), first)
    assert not any(part.any() for part in one.empty_memory(example.support.x))


def test_a_query_is_the_next_example_of_the_stream() -> None:
    one = built()
    values, example = fresh(one), task()
    predicted = one.predict(values, one.adapt(values, example.support), example.query.x)
    for i in range(len(predicted)):
        x, y = (
            torch.cat([given, asked[i : i + 1]]) for given, asked in zip(example.support, example.query, strict=True)
        )
        torch.testing.assert_close(predicted[i], outputs(one, values, x, y)[-1])


def test_queries_do_not_write() -> None:
    one = built()
    values, example = fresh(one), task()
    fast = one.adapt(values, example.support)
    whole = one.predict(values, fast, example.query.x)
    torch.testing.assert_close(one.predict(values, fast, example.query.x.flip(0)).flip(0), whole)
    torch.testing.assert_close(one.predict(values, fast, example.query.x[2:3]), whole[2:3])


def test_the_memory_after_one_write_holds_what_was_added() -> None:
    one = built()
    values, (x, y) = fresh(one), task().support
    memory, _ = one.run(values, one.empty_memory(x), one.model(values, x[:1]), y[:1])
    assert memory.rows[:2].any(-1).all()
    assert not memory.rows[2:].any()
    torch.testing.assert_close(memory.read_weights.sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(memory.label, one_hot(y[0], 3, torch.float64))


def test_the_stream_is_the_examples_in_that_order_each_with_its_own_label() -> None:
    one = built()
    values, example = fresh(one), task()
    x, y = (torch.cat(pair) for pair in zip(example.support, example.query, strict=True))
    places = permutation(fold_in(KEY, "order"), len(y))
    assert not torch.equal(places, torch.arange(len(y)))
    for key in (None, make_key(1)):
        logits, labels, _ = one.stream(values, example, KEY, key)
        torch.testing.assert_close(logits, outputs(one, values, x[places], y[places]))
        assert torch.equal(labels, y[places])


def test_perfect_memory_reaches_the_ceiling_by_elimination_at_first_sight_and_all_after() -> None:
    """Guess among the labels not yet seen, and repeat what was seen: mean(1/5 … 1/1) = 45.7 %, then 100 %."""
    draw, figures = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        y = torch.randperm(50, generator=draw) % 5
        guesses, seen = [], set[int]()
        for label in y.tolist():
            left = [c for c in range(5) if c not in seen]
            guesses.append(label if label in seen else left[int(torch.randint(len(left), (), generator=draw))])
            seen.add(label)
        figures.append(accuracy_by_instance(one_hot(torch.tensor(guesses), 5), y))
    means = [torch.stack([f[f"instance_{k}"] for f in figures]).mean() for k in range(1, 11)]
    assert abs(float(means[0]) - 0.457) < 0.02
    assert all(float(mean) == 1.0 for mean in means[1:])


def test_an_untrained_network_does_not_beat_the_first_instance_ceiling() -> None:
    one = built()
    values, batch = fresh(one), tasks(40, shots=1, queries=4)
    keys = torch.stack([make_key(3, i) for i in range(40)])
    first = score_tasks(one, values, batch, keys, plan="vmap", measure=True, kind=CLASSIFICATION).measures["instance_1"]
    ceiling = sum(1 / n for n in (1, 2, 3)) / 3
    assert float(first.mean()) <= ceiling + 3 * float(first.std()) / len(keys) ** 0.5


def test_fewer_rows_than_heads_are_refused() -> None:
    assert MANN.Config(rows=2, heads=2).rows == 2
    with pytest.raises(ValidationError, match="rows is 1, but each of the 2 heads writes to a different row"):
        MANN.Config(rows=1, heads=2)


def streams(count: int, draw: torch.Generator) -> Task:
    """Return tasks of three classes, each a vector in R^16 seen five times with a little noise."""
    y = torch.arange(3).expand(count, -1)
    centres = torch.randn(count, 3, 16, generator=draw)
    support, query = (Examples(centres.repeat_interleave(n, 1), y.repeat_interleave(n, 1)) for n in (1, 4))
    return Task(*(Examples(x + 0.1 * torch.randn(x.shape, generator=draw), y) for x, y in (support, query)))


def test_it_learns_to_bind_an_example_to_its_label_by_way_of_the_memory() -> None:
    options = MANN.Config(hidden=24, rows=16, width=16, heads=2)
    one = MANN(options, Parts(TaskSpec("classification", (16,), 3, TaskShape(3, 1, 4)), nn.Flatten))
    values, draw = one.init(make_key(1)), torch.Generator().manual_seed(1)
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=1e-2)
    for number in range(300):
        values = {name: leaf.detach() for name, leaf in leaves.items()}
        keys = torch.stack([make_key(number, i) for i in range(32)])
        grads = meta_gradients(one, values, streams(32, draw), keys, plan="fold").grads
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        optimizer.step()
    batch, keys = streams(200, draw), torch.stack([make_key(99, i) for i in range(200)])
    found = score_tasks(one, values, batch, keys, plan="vmap", measure=True, kind=CLASSIFICATION).measures
    # Without a memory a first sight is guessed by elimination, and no later one is better than that.
    assert found["instance_1"].mean() < 0.65
    assert found["instance_2"].mean() > 0.7

    def echoed(support: Examples, x: Tensor, keep: float) -> Tensor:
        memory = one.adapt(values, support)
        return one.predict(values, memory._replace(rows=keep * memory.rows), x).argmax(-1)

    (x, y), (asked, truth), _ = batch
    relabelled = (y + 1) % 3  # Each class's label in the support is another one's, and queries are to echo that.
    for keep, least, most in ((1.0, 0.7, 1.0), (0.0, 0.0, 0.65)):
        with torch.no_grad():
            answers = vmap(lambda x, y, q, keep=keep: echoed(Examples(x, y), q, keep))(x, relabelled, asked)
        assert least <= float((answers == (truth + 1) % 3).double().mean()) <= most
