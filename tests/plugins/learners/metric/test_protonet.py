"""Prototypical networks: fixture F2 and the identities of nearest class means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Params, Parts, Task, TaskShape, TaskSpec
from metaforge_plugins.learners.metric.protonet import ProtoNet
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


def plane(distance: str = "euclidean") -> ProtoNet:
    """Return prototypes of two classes in the plane itself: the network does nothing."""
    spec = TaskSpec("classification", (2,), 2, TaskShape(2, 2, 1))
    return ProtoNet(ProtoNet.Config(distance=distance), Parts(spec, nn.Identity))  # type: ignore[arg-type]


def doubles(*rows: tuple[float, ...]) -> Tensor:
    """Return a matrix in float64."""
    return torch.tensor(rows, dtype=torch.float64)


F2 = Task(
    Examples(doubles((0, 0), (2, 0), (0, 3), (0, 5)), torch.tensor([0, 0, 1, 1])),
    Examples(doubles((1, 1)), torch.tensor([0])),
)


def test_f2() -> None:
    built = plane()
    fast = built.adapt({}, F2.support)
    logits = built.predict({}, fast, F2.query.x)
    torch.testing.assert_close(fast["prototypes"], doubles((1, 0), (0, 4)))
    torch.testing.assert_close(logits, doubles((-1, -10)))
    torch.testing.assert_close(logits.log_softmax(-1), doubles((-0.000123, -9.000123)), rtol=0, atol=1e-6)
    torch.testing.assert_close(built.loss({}, F2, KEY)[0], doubles((0.000123,))[0, 0], rtol=0, atol=1e-6)
    linear = 2 * F2.query.x @ fast["prototypes"].T - fast["prototypes"].square().sum(-1)
    torch.testing.assert_close(linear, doubles((1, -8)))


def cloud(built: Any, values: Params, example: Task) -> Tensor:
    """Return a learner's class probabilities of the queries."""
    return built.predict(values, built.adapt(values, example.support), example.query.x).softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", BATCH_POLICIES)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_finite_differences(distance: str, norm: str) -> None:
    assert_loss_has_its_gradient(learner(ProtoNet, backbone=smooth("batch"), distance=distance, norm=norm))


@pytest.mark.parametrize("norm", BATCH_POLICIES)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_vectorised_equals_loop(distance: str, norm: str) -> None:
    built = learner(ProtoNet, backbone=smooth("batch"), distance=distance, norm=norm)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=3), looped)


def test_it_is_the_linear_classifier_of_its_prototypes() -> None:
    built = learner(ProtoNet)
    values, example = fresh(built), task()
    prototypes = built.adapt(values, example.support)["prototypes"]
    features = built.model(values, example.query.x)
    linear = 2 * features @ prototypes.T - prototypes.square().sum(-1)
    torch.testing.assert_close(cloud(built, values, example), linear.softmax(-1))


def test_moving_or_turning_all_features_leaves_the_probabilities() -> None:
    built = plane()
    turn = doubles((0.6, -0.8), (0.8, 0.6))
    for change in (lambda x: x + doubles((3, -7)), lambda x: x @ turn):
        moved = Task(F2.support._replace(x=change(F2.support.x)), F2.query._replace(x=change(F2.query.x)))
        torch.testing.assert_close(cloud(built, {}, moved), cloud(built, {}, F2))


def test_support_order_and_duplicates_do_not_matter() -> None:
    built = learner(ProtoNet, backbone=smooth("batch"))
    values, example = fresh(built), task()
    expected = cloud(built, values, example)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    twice = torch.arange(6).repeat(2)
    for chosen in (order, twice, torch.cat([torch.arange(6), torch.arange(2), torch.arange(2)])):
        support = Examples(example.support.x[chosen], example.support.y[chosen])
        torch.testing.assert_close(cloud(built, values, example._replace(support=support)), expected)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_relabelling_permutes_the_logits(norm: str) -> None:
    built = learner(ProtoNet, backbone=smooth("batch"), norm=norm)
    values, example, order = fresh(built), task(), torch.tensor([2, 0, 1])
    relabelled = example._replace(support=example.support._replace(y=order[example.support.y]))
    torch.testing.assert_close(cloud(built, values, relabelled), cloud(built, values, example)[:, order.argsort()])


def test_a_query_at_a_prototype_far_from_the_others_is_certain() -> None:
    far = Task(F2.support._replace(x=F2.support.x * 10), Examples(doubles((10, 0), (0, 40)), torch.tensor([0, 1])))
    torch.testing.assert_close(cloud(plane(), {}, far), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_with_one_shot_it_attends_to_the_support_by_squared_distance() -> None:
    built = learner(ProtoNet)
    values, example = fresh(built), task(0, shots=1)
    support, query = (built.model(values, part.x) for part in example[:2])
    attention = (-torch.cdist(query, support).square()).softmax(-1)
    torch.testing.assert_close(cloud(built, values, example), attention)


def test_cosine_ignores_lengths() -> None:
    built = plane("cosine")
    logits = built.predict({}, built.adapt({}, F2.support), F2.query.x)
    torch.testing.assert_close(logits, doubles((0.5**0.5, 0.5**0.5)))
    torch.testing.assert_close(built.predict({}, built.adapt({}, F2.support), 9 * F2.query.x), logits)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_whether_a_query_depends_on_the_others_is_as_declared(norm: str) -> None:
    built = learner(ProtoNet, backbone=smooth("batch"), norm=norm)
    values, example = fresh(built), task()
    fast = built.adapt(values, example.support)
    whole, alone = built.predict(values, fast, example.query.x), built.predict(values, fast, example.query.x[:1])
    assert built.norm == norm
    assert built.transductive is (norm == "transductive")
    assert torch.allclose(whole[:1], alone, rtol=1e-9) is not built.transductive


def test_under_running_statistics_support_and_query_are_one_batch() -> None:
    built = learner(ProtoNet, backbone=smooth("batch"), norm="running")
    values, example = fresh(built), task()
    both = torch.cat([example.support.x, example.query.x]) @ values["model.0.weight"].T + values["model.0.bias"]
    loss, aux = built.loss(values, example, KEY)
    change = aux.state["state.model.1.mean"]
    torch.testing.assert_close(change, 0.1 * both.mean(0))
    network = smooth("batch")().double()
    network.load_state_dict(
        {name.removeprefix("model."): v for name, v in split_state(values)[0].items()}, strict=False
    )
    support, query = network(torch.cat([example.support.x, example.query.x])).detach().tensor_split([6])
    prototypes = torch.stack([support[example.support.y == n].mean(0) for n in range(3)])
    torch.testing.assert_close(loss, F.cross_entropy(-torch.cdist(query, prototypes).square(), example.query.y))


def test_any_number_of_ways_shares_the_values() -> None:
    built = learner(ProtoNet)
    values = fresh(built)
    wider = ProtoNet(ProtoNet.Config(), Parts(TaskSpec("classification", (3,), 5, TaskShape(5, 2, 3)), smooth()))
    assert wider.init(KEY).keys() == values.keys()
    assert cloud(wider, values, task(0, ways=5)).shape == (15, 5)
    assert not ProtoNet.tags.fixed_ways
