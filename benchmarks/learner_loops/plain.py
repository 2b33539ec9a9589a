"""What all plain loops use: the network, the options of the method, and steps of gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metaforge.authoring import Examples, Params, Task


class Plain:
    """What a loss of one task needs beside values and data.

    Args:
        module: The network of torch's own layers, in training mode: a body, `nn.Flatten` and a linear head, or a body
            alone. A method without a network of its user has an empty one.
        criterion: The mean loss of (prediction, target).
        options: The options of the learner.
        adapters: The options of each adapter, by name.
        regularizers: The options of each regularizer, by name.

    Attributes:
        everything: Names of all values of the network.
        weights: Those that are no parameters of batch norm.
        norms: Those that are.
        body: Those of the body, including its batch norm.
        head: Those of the head.
    """

    def __init__(
        self,
        module: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        options: Any,
        adapters: Mapping[str, Any],
        regularizers: Mapping[str, Any],
    ) -> None:
        self.module, self.criterion, self.options = module, criterion, options
        self.adapters, self.regularizers = adapters, regularizers
        layers = dict(module.named_modules())
        self.everything = {name: f"model.{name}" for name, _ in module.named_parameters()}
        norms = {name for name in self.everything if isinstance(layers[name.rpartition(".")[0]], nn.BatchNorm2d)}
        self.norms = [own for name, own in self.everything.items() if name in norms]
        self.weights = [own for name, own in self.everything.items() if name not in norms]
        self.body = [own for own in self.everything.values() if own.startswith("model.0.")]
        self.head = [own for own in self.everything.values() if own.startswith("model.2.")]
        self.of_body = {own.removeprefix("model.0."): own for own in self.body}

    def __call__(self, values: Params, *inputs: Tensor) -> Tensor:
        """Return the outputs `[n, outputs]` of the network."""
        return functional_call(self.module, {name: values[own] for name, own in self.everything.items()}, inputs)

    def features(self, values: Params, x: Tensor) -> Tensor:
        """Return the flattened features `[n, features]` of the body of a network with a head."""
        assert isinstance(self.module, nn.Sequential)
        named = {name: values[own] for name, own in self.of_body.items()}
        return functional_call(self.module[0], named, (x,)).flatten(1)

    def of_task(self, values: Params, task: Task, prefix: str = "model") -> tuple[Tensor, Tensor]:
        """Return the flattened outputs `[n, outputs]` for support and query set, which are one batch of batch norm.

        Args:
            values: All values.
            task: One task.
            prefix: Prefix of the weights: a method can have two networks of the same layers.
        """
        named = {name: values[f"{prefix}.{name}"] for name in self.everything}
        both = functional_call(self.module, named, (torch.cat([task.support.x, task.query.x]),)).flatten(1)
        return both[: len(task.support.x)], both[len(task.support.x) :]

    def loss(self, values: Params, data: Examples, *context: Tensor) -> Tensor:
        """Return the loss on some examples."""
        return self.criterion(self(values, data.x, *context), data.y)


def gradients(loss: Tensor, params: Params, *, first_order: bool = False) -> Params:
    """Return the gradient of a loss by name, with a graph of its own unless it is to be a constant."""
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
    return dict(zip(params, grads, strict=True))


def moved(params: Params, grads: Params, lr: float) -> Params:
    """Return the parameters after a step of gradient descent."""
    return {name: value - lr * grads[name] for name, value in params.items()}


def of(values: Params, names: Sequence[str]) -> Params:
    """Return the named values."""
    return {name: values[name] for name in names}


def leaves(params: Params) -> Params:
    """Return the parameters as constants of which gradients can be taken."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def flat(params: Params) -> Tensor:
    """Return all entries in one vector."""
    return torch.cat([value.flatten() for value in params.values()])


def adapted(values: Params, task: Task, plain: Plain, names: Sequence[str]) -> Params:
    """Return all values, of which the named ones are adapted by gradient descent."""
    fast = of(values, names)
    for _ in range(plain.options.steps):
        fast = moved(fast, gradients(plain.loss(values | fast, task.support), fast), plain.adapters["sgd"].lr)
    return values | fast


def adapted_by_constants(values: Params, task: Task, plain: Plain, names: Sequence[str]) -> Params:
    """Return all values, of which the named ones are adapted by gradients that count as constants (first order)."""
    start = of(values, names)
    fast = leaves(start)
    for _ in range(plain.options.steps):
        grads = gradients(plain.loss(values | fast, task.support), fast, first_order=True)
        fast = leaves(moved(fast, grads, plain.adapters["sgd"].lr))
    return values | {name: value + (fast[name] - value).detach() for name, value in start.items()}


def linear(values: Params, name: str, x: Tensor) -> Tensor:
    """Return the output of a linear layer."""
    return F.linear(x, values[f"{name}.weight"], values[f"{name}.bias"])


def mlp(values: Params, name: str, count: int, x: Tensor) -> Tensor:
    """Return the output of linear layers `<name>.0`, `<name>.1`, … with ReLU between them."""
    for number in range(count - 1):
        x = linear(values, f"{name}.{number}", x).relu()
    return linear(values, f"{name}.{count - 1}", x)


def class_means(features: Tensor, y: Tensor) -> Tensor:
    """Return the mean feature of each class `[ways, features]`."""
    members = F.one_hot(y).to(features.dtype)
    return members.T @ features / members.sum(0).unsqueeze(1)
