"""SimpleShot: the running mean of the features, what each transform leaves unchanged, and plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Params, Parts, Task, TaskShape, TaskSpec
from metaforge_plugins.learners.metric.simpleshot import CENTRE, SimpleShot
from toys import assert_equal_steps, fresh, smooth, step, task, tasks

KEY = make_key(0)


def built(backbone: Any = None, **options: Any) -> SimpleShot:
    spec = TaskSpec("classification", (3,), 3, TaskShape(3, 2, 3), classes=7)
    return SimpleShot(SimpleShot.Config(**options), Parts(spec, backbone or smooth()))


def numbered(example: Task, classes: tuple[int, ...] = (5, 0, 3)) -> Task:
    return example._replace(classes=torch.tensor(classes))


def logits(one: SimpleShot, values: Params, support: Examples, x: Tensor) -> Tensor:
    found: Tensor = one.predict(values, one.adapt(values, support), x)
    return found


def test_the_loss_is_that_of_a_classifier_of_all_training_classes() -> None:
    one, example = built(lambda: nn.Linear(3, 4)), numbered(task(1))
    v = {name: value.requires_grad_(name != CENTRE) for name, value in fresh(one).items()}
    x, y = torch.cat([example.support.x, example.query.x]), torch.cat([example.support.y, example.query.y])
    features = F.linear(x, v["model.weight"], v["model.bias"])
    expected = F.cross_entropy(
        F.linear(features, v["classifier.weight"], v["classifier.bias"]), torch.tensor([5, 0, 3])[y]
    )
    loss, aux = one.loss(v, example, KEY)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(aux.state[CENTRE], 0.05 * (features.mean(0) - v[CENTRE]).detach())


def test_the_running_mean_converges_to_the_mean_of_the_features() -> None:
    one, example = built(momentum=0.5), numbered(task(1))
    values = fresh(one)
    for _ in range(60):
        values = values | {CENTRE: values[CENTRE] + one.loss(values, example, KEY)[1].state[CENTRE]}
    x = torch.cat([example.support.x, example.query.x])
    torch.testing.assert_close(values[CENTRE], one.model(values, x).mean(0))


@pytest.mark.parametrize("transform", ["none", "l2", "centred-l2"])
def test_the_logits_are_those_of_plain_pytorch(transform: str) -> None:
    one, example = built(lambda: nn.Linear(3, 4), transform=transform), task(2)
    values = fresh(one) | {CENTRE: torch.tensor([0.3, -0.2, 0.5, 0.1]).double()}

    def vector(x: Tensor) -> Tensor:
        f = values["model.weight"] @ x + values["model.bias"]
        f = f - values[CENTRE] if transform == "centred-l2" else f
        return f if transform == "none" else f / f.norm()

    means = []
    for label in range(3):
        own = [vector(x) for x, y in zip(*example.support, strict=True) if y == label]
        means.append(sum(own) / len(own))
    expected = torch.stack(
        [torch.stack([-(vector(x) - mean).square().sum() for mean in means]) for x in example.query.x]
    )
    torch.testing.assert_close(logits(one, values, example.support, example.query.x), expected)


def test_what_the_transforms_leave_unchanged() -> None:
    """Only `none` notices the length of features, and only `centred-l2` an offset that the running mean has, too."""
    example, offset = task(2), torch.tensor([2.0, -1.0, 3.0]).double()

    def found(transform: str, factor: float, shift: bool) -> Tensor:
        one = built(nn.Identity, transform=transform)
        moved = [factor * part.x + shift * offset for part in (example.support, example.query)]
        values = fresh(one) | {CENTRE: shift * offset}
        return logits(one, values, example.support._replace(x=moved[0]), moved[1])

    for transform, length, place in (("none", False, True), ("l2", True, False), ("centred-l2", True, True)):
        plain = found(transform, 1, False)
        assert torch.allclose(found(transform, 3, False), plain) == length
        assert torch.allclose(found(transform, 1, True), plain) == place


def test_finite_differences() -> None:
    one = built(smooth("batch"))
    params = fresh(one)
    example = numbered(task(3))
    loss = lambda p: one.loss(p, example, KEY)[0]  # noqa: E731
    grads = torch.func.grad(loss)(params)
    assert (grads[CENTRE] == 0).all()
    assert grads["model.0.weight"].abs().max() > 1e-4
    assert torch.autograd.gradcheck(
        lambda w: loss(params | {"classifier.weight": w}), params["classifier.weight"].requires_grad_()
    )


def test_vectorised_equals_loop() -> None:
    one = built(smooth("batch"))
    values, batch = fresh(one), tasks(4)
    batch = batch._replace(
        classes=torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(i))[:3] for i in range(4)])
    )
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
