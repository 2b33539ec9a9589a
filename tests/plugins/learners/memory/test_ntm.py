"""Neural Turing machine: fixture F6 of its addressing, its limits, and what a sequence may and may not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import MULTI_LABEL
from metaforge.authoring.losses import one_hot
from metaforge.authoring.protocols import Examples, Kind, Params, Parts, Task, TaskShape
from metaforge.engine.batch import meta_gradients, prepare_tasks, score_tasks
from metaforge_plugins.datasets.copy import Copy
from metaforge_plugins.learners.memory.ntm import NTM, Address, cosines, move, sharpened, shifted, write
from toys import assert_equal_steps, assert_true_gradient, close, fresh, learner, smooth, step, task, tasks

KEY = make_key(0)
SIZES = {"hidden": 6, "rows": 7, "width": 4, "heads": 2}
KINDS = ("classification", "multi-label")
both = pytest.mark.parametrize("kind", KINDS)
CONTROLLERS = ("lstm", "feed-forward")


def built(kind: Kind = "classification", backbone: Any = None, **options: Any) -> Any:
    """Return a small machine."""
    return learner(NTM, kind=kind, backbone=backbone, **SIZES | options)


def address(key: list[float], strength: float, gate: float, shift: list[float], sharpness: float) -> Address:
    """Return what one head emits."""
    parts = ([key], [strength], [gate], [shift], [sharpness])
    return Address(*(torch.tensor(part, dtype=torch.float64) for part in parts))


def rows_of_f6() -> Tensor:
    """Return the memory of fixture F6."""
    return torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)


def test_f6() -> None:
    rows, previous = rows_of_f6(), torch.tensor([[0.0, 1.0, 0.0]]).double()
    key, shift = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.1, 0.8, 0.1]]).double()
    content = (2 * cosines(key, rows)).softmax(-1)
    close(content, 0.591015, 0.079985, 0.328999)
    gated = 0.5 * content + 0.5 * previous
    close(gated, 0.295508, 0.539993, 0.164500)
    moved = shifted(gated, shift)
    close(moved, 0.306855, 0.477995, 0.215150)
    sharp = sharpened(moved, torch.tensor([2.0]).double())
    close(sharp, 0.255226, 0.619304, 0.125470)
    close(sharp @ rows, 0.380696, 0.744774)
    torch.testing.assert_close(move(address([1, 0], 2, 0.5, [0.1, 0.8, 0.1], 2), rows, previous), sharp)


def test_content_alone_finds_the_best_match() -> None:
    previous = torch.tensor([[0.2, 0.5, 0.3]]).double()
    found = move(address([0.3, 1.2], 1e4, 1, [0, 1, 0], 1), rows_of_f6(), previous)
    close(found, 0, 1, 0)


@pytest.mark.parametrize(("shift", "expected"), [([0, 0, 1], [0.3, 0.2, 0.5]), ([1, 0, 0], [0.5, 0.3, 0.2])])
def test_location_alone_rotates_the_last_weights(shift: list[float], expected: list[float]) -> None:
    """A shift of +1 moves what was at row i to row i + 1, and the last row to the first."""
    found = move(address([1, 1], 3, 0, shift, 1), rows_of_f6(), torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_shifts_of_several_rows_are_a_circular_convolution() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 9, generator=draw, dtype=torch.float64).softmax(-1)
    shift = torch.rand(2, 5, generator=draw, dtype=torch.float64).softmax(-1)
    places = torch.arange(9)
    for w, s, found in zip(weights, shift, shifted(weights, shift), strict=True):
        # The matrix of the convolution: what is at row j goes to row i by a shift of i − j.
        matrix = sum(s[n + 2] * (places.unsqueeze(1) == (places + n) % 9).double() for n in range(-2, 3))
        torch.testing.assert_close(found, matrix @ w, rtol=1e-12, atol=1e-14)


def test_sharpening_is_the_power_and_does_not_underflow() -> None:
    weights = torch.tensor([[0.1, 0.6, 0.3], [0.7, 0.2, 0.1]]).double()
    gamma = torch.tensor([1.0, 3.5]).double()
    powers = weights ** gamma.unsqueeze(-1)
    torch.testing.assert_close(sharpened(weights, gamma), powers / powers.sum(-1, keepdim=True))
    # In float32 the 60th power of 1/128 is zero.
    uniform = torch.full((1, 128), 1 / 128)
    torch.testing.assert_close(sharpened(uniform, torch.tensor([60.0])), uniform)


def test_every_stage_gives_weights_that_sum_to_one() -> None:
    one = built()
    raw = 3 * torch.randn(2, one.address_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    emitted = one.address(raw)
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    previous = torch.rand(2, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(-1)
    moved = shifted(previous, emitted.shift)
    for weights in (emitted.shift, moved, sharpened(moved, emitted.sharpness), move(emitted, rows, previous)):
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(2).double())
    torch.testing.assert_close(emitted.key, raw[:, :4])
    torch.testing.assert_close(emitted.strength, F.softplus(10 + raw[:, 4]))
    assert torch.equal(built(strength=0).address(raw).strength, F.softplus(raw[:, 4]))
    torch.testing.assert_close(emitted.gate, raw[:, 5].sigmoid())
    torch.testing.assert_close(emitted.sharpness, 1 + F.softplus(raw[:, 6]))
    torch.testing.assert_close(emitted.shift, raw[:, 7:].softmax(-1))


def test_a_row_that_is_erased_and_written_to_is_replaced() -> None:
    rows = torch.arange(12.0).reshape(3, 4)
    add = torch.tensor([[-1.0, 2.0, 0.5, 7.0]])
    found = write(rows, torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1, 4), add)
    assert torch.equal(found, torch.stack([rows[0], add[0], rows[2]]))


def test_all_heads_erase_before_any_adds() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, weights, erase, add = (torch.rand(shape, generator=draw) for shape in ((3, 4), (2, 3), (2, 4), (2, 4)))
    expected = rows
    for w, e in zip(weights, erase, strict=True):
        expected = expected * (1 - torch.outer(w, e))
    for w, a in zip(weights, add, strict=True):
        expected = expected + torch.outer(w, a)
    torch.testing.assert_close(write(rows, weights, erase, add), expected)


def reference(one: Any, values: Params, inputs: Tensor) -> Tensor:
    """Return the outputs for a sequence of inputs `[n, features + outputs]`, written from the paper's equations."""
    rows, hidden, cell, read = torch.full((7, 4), 1e-6).double(), *torch.zeros(2, 6).double(), torch.zeros(8).double()
    w = {head: F.one_hot(torch.tensor(0), 7).double() for head in ("w0", "w1", "r0", "r1")}
    lstm = nn.LSTMCell(inputs.shape[1] + 8, 6).double()
    ih, hh = values["ntm.lstm.weight_ih"], values["ntm.lstm.weight_hh"]
    weights = {"weight_ih": torch.cat([ih, hh[:, 6:]], 1), "weight_hh": hh[:, :6], "bias_ih": values["ntm.lstm.bias"]}
    weights["bias_hh"] = F.pad(torch.ones(6), (6, 12)).double()
    outputs = []
    for x in inputs:
        step_in = (torch.cat([x, read]).unsqueeze(0), (hidden.unsqueeze(0), cell.unsqueeze(0)))
        hidden, cell = (t[0] for t in torch.func.functional_call(lstm, weights, step_in))
        emitted = F.linear(hidden, values["ntm.interface.0.weight"], values["ntm.interface.0.bias"])
        heads, erase, add = emitted[:40].reshape(4, 10), emitted[40:48].reshape(2, 4), emitted[48:].reshape(2, 4)
        heads = dict(zip(("r0", "r1", "w0", "w1"), heads, strict=True))

        def turn(name: str, rows: Tensor, heads: Any = heads, w: Params = w) -> Tensor:
            k, (b, g, gamma), s = heads[name][:4], heads[name][4:7], heads[name][7:].softmax(0)
            content = (F.softplus(10 + b) * F.cosine_similarity(k, rows, dim=-1)).softmax(0)
            mixed = g.sigmoid() * content + (1 - g.sigmoid()) * w[name]
            power = sum(s[i + 1] * mixed.roll(i) for i in (-1, 0, 1)) ** (1 + F.softplus(gamma))
            return power / power.sum()

        w |= {name: turn(name, rows) for name in ("w0", "w1")}
        for i in (0, 1):
            rows = rows * (1 - torch.outer(w[f"w{i}"], erase[i].sigmoid()))
        rows = rows + sum(torch.outer(w[f"w{i}"], add[i]) for i in (0, 1))
        w |= {name: turn(name, rows) for name in ("r0", "r1")}
        read = torch.cat([w["r0"] @ rows, w["r1"] @ rows])
        outputs.append(F.linear(torch.cat([hidden, read]), values["ntm.output.0.weight"], values["ntm.output.0.bias"]))
    return torch.stack(outputs)


def test_outputs_are_those_of_the_equations() -> None:
    one = built(backbone=nn.Flatten)
    values, (x, y) = fresh(one), task(0, shots=4).support
    found = one.run(values, one.empty_memory(x), x, y)[1]
    known = torch.cat([torch.zeros(1, 3), F.one_hot(y[:-1])]).double()
    torch.testing.assert_close(found, reference(one, values, torch.cat([x, known], -1)), rtol=1e-7, atol=1e-9)


@both
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_finite_differences(kind: Kind, controller: str) -> None:
    one = built(kind, smooth("batch"), controller=controller)
    params, state = split_state(fresh(one, 3))
    example = task(3, kind)
    assert_true_gradient(lambda p: one.loss(p | state, example, KEY)[0], params)


@both
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_vectorised_equals_loop(kind: Kind, controller: str) -> None:
    one = built(kind, smooth("batch"), controller=controller)
    values, batch = fresh(one), tasks(3, kind, shots=3)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=2), looped)


def test_the_gradient_is_that_of_plain_autograd() -> None:
    one = built("multi-label", nn.Flatten)
    values, example = fresh(one), task(1, "multi-label", shots=3)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    (x, y), (asked, targets), _ = in_time(example)
    known = torch.cat([torch.zeros(1, 2).double(), y, torch.zeros(2, 2).double()])
    logits = reference(one, leaves, torch.cat([torch.cat([x, asked]), known], -1))[3:]
    theirs = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, targets), list(leaves.values()))
    ours = torch.func.grad(lambda v: one.loss(v, example, KEY)[0])(values)
    for name, other in zip(leaves, theirs, strict=True):
        torch.testing.assert_close(ours[name], other, rtol=1e-7, atol=1e-10)


def in_time(example: Task) -> Task:
    """Return a task with its examples in the order of their last input, which becomes zero."""
    parts = []
    for x, y in (example.support, example.query):
        order = x[:, -1].argsort()
        parts.append(Examples(torch.cat([x[order, :-1], torch.zeros(len(x), 1).double()], 1), y[order]))
    return Task(*parts)


def test_a_label_never_reaches_the_prediction_of_its_own_example() -> None:
    one = built()
    values, (x, y) = fresh(one), task(0, shots=3).support

    def outputs(y: Tensor) -> Tensor:
        embedded = one.model(values, x)
        return one.run(values, one.empty_memory(embedded), embedded, y)[1]

    plain = outputs(y)
    for t in range(len(y)):
        changed = y.clone()
        changed[t] = (changed[t] + 1) % 3
        assert torch.equal(outputs(changed)[: t + 1], plain[: t + 1])
        assert not torch.isclose(outputs(changed)[t + 1 :], plain[t + 1 :], rtol=1e-9).all(-1).any()


def test_with_classes_a_query_is_the_next_example_of_the_stream() -> None:
    one = built()
    values, example = fresh(one), task()
    memory = one.adapt(values, example.support)
    predicted = one.predict(values, memory, example.query.x)
    for i in range(len(predicted)):
        x, y = (
            torch.cat([given, asked[i : i + 1]]) for given, asked in zip(example.support, example.query, strict=True)
        )
        features = one.model(values, x)
        torch.testing.assert_close(predicted[i], one.run(values, one.empty_memory(features), features, y)[1][-1])
    torch.testing.assert_close(one.predict(values, memory, example.query.x[2:3]), predicted[2:3])
    assert not one.transductive
    assert torch.equal(memory.label, one_hot(example.support.y[-1], 3, torch.float64))


def test_with_several_labels_queries_are_answered_one_after_the_other_in_the_order_of_their_times() -> None:
    one = built("multi-label")
    values, example = fresh(one), task(0, "multi-label", shots=4, queries=5)
    ordered = in_time(example)
    memory = one.adapt(values, example.support)
    features, then = (one.model(values, part.x) for part in (ordered.support, ordered.query))
    expected = one.run(values, one.empty_memory(features), features, ordered.support.y)[0]
    for ours, theirs in zip(memory, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # The label of the last support example is known at the first query, and no label of a query ever is.
    labels = torch.stack([torch.cat([features, ordered.support.y], -1)[-1, -2:], *torch.zeros(4, 2).double()])
    state, answers = memory, []
    for projected in one.projected(values, then, labels):
        state, answer = one.step(values, state, projected)
        answers.append(answer)
    predicted = one.predict(values, memory, example.query.x)
    order = example.query.x[:, -1].argsort()
    assert not torch.equal(order.argsort(), order)
    torch.testing.assert_close(predicted[order], torch.stack(answers))
    shuffled = torch.tensor([2, 0, 4, 1, 3])
    torch.testing.assert_close(one.predict(values, memory, example.query.x[shuffled]), predicted[shuffled])
    assert one.transductive


def test_the_controller_does_not_see_the_times() -> None:
    one = built("multi-label")
    values, example = fresh(one), task(0, "multi-label")
    later = [Examples(x + torch.tensor([0.0, 0.0, 9.0]).double(), y) for x, y in (example.support, example.query)]
    plain, moved = (one.loss(values, t, KEY)[0] for t in (example, Task(*later)))
    torch.testing.assert_close(plain, moved, rtol=0, atol=0)


def test_the_wrong_bits_and_the_cost_of_a_sequence() -> None:
    one = built("multi-label")
    values, example = fresh(one), task(0, "multi-label")
    logits, y, _ = one.answers(values, example, None)
    found = one.measure(values, example, KEY)
    assert float(found["wrong_bits"]) == pytest.approx(int(((logits > 0) != y.bool()).sum()))
    nats = F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
    torch.testing.assert_close(found["cost_in_bits"], nats / torch.tensor(2.0).double().log())
    torch.testing.assert_close(one.loss(values, example, KEY)[0], nats / y.numel())


def test_every_sequence_starts_with_the_same_memory() -> None:
    one = built()
    start = one.empty_memory(task().support.x)
    assert torch.equal(start.rows, torch.full((7, 4), 1e-6, dtype=torch.float64))
    assert torch.equal(start.reads, one_hot(torch.zeros(2, dtype=torch.int64), 7, torch.float64))
    assert torch.equal(start.writes, start.reads)
    assert not any(part.any() for part in (start.hidden, start.cell, start.read, start.label))


def test_the_size_of_the_machine_of_the_paper() -> None:
    """One of 128 rows of 20 and a feed-forward controller has about 17,000 parameters for the copy task (table 1)."""
    data = Copy(Copy.Config(), root=Path())
    parts = Parts(data.spec("train", TaskShape(1, 20, 20)), nn.Flatten)
    values = NTM(NTM.Config(controller="feed-forward"), parts).init(KEY)
    assert 10_000 < sum(value.numel() for value in values.values()) < 20_000


def test_it_learns_to_copy() -> None:
    data, shape = Copy(Copy.Config(bits=2), root=Path()), TaskShape(1, 3, 3)
    one = NTM(NTM.Config(hidden=24, rows=8, width=6), Parts(data.spec("train", shape), nn.Flatten))
    leaves = {name: value.requires_grad_() for name, value in one.init(make_key(1)).items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=1e-2)

    def batch(split: str, first: int, count: int, shape: TaskShape) -> Task:
        return prepare_tasks(data.sample(split, shape, first, count, seed=0), torch.device("cpu"), torch.float32)

    for number in range(200):
        values = {name: leaf.detach() for name, leaf in leaves.items()}
        keys = torch.stack([make_key(number, i) for i in range(16)])
        grads = meta_gradients(one, values, batch("train", 16 * number, 16, shape), keys, plan="fold").grads
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        optimizer.step()
    keys = torch.stack([make_key(99, i) for i in range(100)])
    values = {name: leaf.detach() for name, leaf in leaves.items()}
    found = score_tasks(one, values, batch("test", 0, 100, shape), keys, plan="vmap", measure=True, kind=MULTI_LABEL)
    # Of six bits, three are wrong by chance.
    assert found.measures["wrong_bits"].mean() < 0.5
