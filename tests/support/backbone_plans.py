"""A backbone in MAML by every plan, in float64, and the number of its parameters, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaforge.authoring import Backbone, Examples, Parts, Task, TaskShape, TaskSpec, make_key, normal
from metaforge.engine.batch import MetaStep, meta_gradients
from metaforge.engine.plans import Plan
from metaforge_plugins.learners.gradient.maml import MAML
from toys import sgd

WAYS = 2
PLANS: tuple[Plan, ...] = ("loop", "vmap", "fold")


def spec_of(*x_shape: int) -> TaskSpec:
    """Return the spec of tasks with two classes and inputs of a shape."""
    return TaskSpec("classification", x_shape, WAYS, TaskShape(WAYS, 1, 2))


def size(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def inputs(*shape: int, seed: int = 0) -> Tensor:
    """Return random inputs in float64."""
    return normal(make_key(seed, "inputs"), shape, torch.float64)


def step(backbone: Backbone, spec: TaskSpec, plan: Plan) -> MetaStep:
    """Return the meta-gradients of MAML with two inner steps, on two random tasks."""
    learner = MAML(MAML.Config(steps=2), Parts(spec, lambda: backbone.build(spec), sgd(0.1)))
    values = {name: value.double() for name, value in learner.init(make_key(0)).items()}
    support, query = (
        Examples(inputs(2, WAYS * count, *spec.x_shape, seed=count), torch.arange(WAYS).repeat(count).expand(2, -1))
        for count in (1, 2)
    )
    return meta_gradients(learner, values, Task(support, query), torch.stack([make_key(0), make_key(1)]), plan=plan)


def assert_equal_plans(backbone: Backbone, *x_shape: int, plans: tuple[Plan, ...] = PLANS[1:]) -> None:
    """Fail unless the plans give the meta-gradients of a loop over the tasks."""
    spec = spec_of(*x_shape)
    looped = step(backbone, spec, "loop")
    assert all(bool(gradient.isfinite().all()) for gradient in looped.grads.values())
    for plan in plans:
        together = step(backbone, spec, plan)
        for name, gradient in looped.grads.items():
            torch.testing.assert_close(together.grads[name], gradient, rtol=1e-9, atol=1e-9, msg=f"{plan}: {name}")


def assert_he_normal(network: nn.Module) -> None:
    """Fail unless convolutions have no bias and weights of the variance 2 / outputs, and batch norm is the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert abs(float(module.weight.detach().std()) / expected - 1) < 5 / module.weight.numel() ** 0.5
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
