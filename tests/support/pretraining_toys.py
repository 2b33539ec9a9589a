"""Toy tasks whose classes are numbered, for learners that pretrain on all training classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from metaforge.authoring.descent import Chain
from metaforge.authoring.keys import make_key
from metaforge.authoring.network import seeded
from metaforge.authoring.protocols import Adapter, Examples, Params, Parts, Regularizer, Task
from toys import sgd, smooth, spec, task

KEY = make_key(0)
CLASSES = 7
# The classes of toy tasks, not in the order of their numbers.
NUMBERS = (5, 0, 3, 6, 2)


def numbered(seed: int = 0, *, ways: int = 3, shots: int = 2, queries: int = 3) -> Task:
    """Return one random task whose labels stand for the classes `NUMBERS`."""
    return task(seed, ways=ways, shots=shots, queries=queries)._replace(classes=torch.tensor(NUMBERS[:ways]))


def numbered_tasks(count: int) -> Task:
    """Return a batch of random tasks `[count, ...]`."""
    batch: Task = tree_map(lambda *leaves: torch.stack(leaves), *(numbered(seed) for seed in range(count)))
    return batch


def pretraining(
    cls: type[Any],
    *,
    ways: int = 3,
    backbone: Callable[[], nn.Module] | None = None,
    adapters: Mapping[str, Adapter] | None = None,
    regularizers: Mapping[str, Regularizer] | None = None,
    frozen: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Return a learner of `numbered` tasks; its adapter is gradient descent by default."""
    chain = Chain(adapters) if adapters is not None else sgd(0.3)
    built_for = replace(spec(ways=ways), classes=CLASSES)
    parts = Parts(built_for, backbone or smooth("batch"), chain, regularizers or {}, frozen)
    return cls(cls.Config(**options), parts)


def plain_network(seed: int = 1) -> nn.Module:
    """Return a network of torch alone in float64, whose batch norm has seen data."""
    with seeded(make_key(seed)):
        module = smooth("batch")().double()
    module(torch.cat([torch.cat([example.support.x, example.query.x]) for example in map(numbered, range(3))]))
    return module


def values_of(module: nn.Module) -> Params:
    """Return the values of a learner that has this network: its parameters, and the statistics of its batch norm."""
    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm1d)}
    values = {f"model.{name}": value.detach().clone() for name, value in module.named_parameters()}
    for name, layer in norms.items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # Copies: torch changes its buffers in place.
        values[f"state.model.{name}.mean"] = layer.running_mean.clone()
        values[f"state.model.{name}.var"] = layer.running_var.clone()
    return values


def everything(example: Task) -> Examples:
    """Return support and query set together."""
    return Examples(*(torch.cat(pair) for pair in zip(example.support, example.query, strict=True)))


def assert_pretrains(built: Any, values: Params, module: nn.Module, logits: Callable[[Tensor, Params], Tensor]) -> None:
    """Fail unless the loss of a learner is the cross-entropy of plain torch over all classes, on all examples at once.

    Args:
        built: The learner.
        values: Its values: those of `module`, and of a classifier.
        module: The network.
        logits: Returns the logits `[n, CLASSES]` of features, given the values.
    """
    example = numbered(4)
    x, y = everything(example)
    labels = torch.tensor([NUMBERS[int(label)] for label in y])
    classifier = {name: values[name].clone().requires_grad_() for name in values if "model." not in name}
    module.train()
    expected = F.cross_entropy(logits(module(x), classifier), labels)
    expected.backward()
    loss, aux = built.loss(values, example, KEY)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    grads = grad(lambda v: built.loss(v, example, KEY)[0])(values)
    for name, parameter in {**{f"model.{n}": p for n, p in module.named_parameters()}, **classifier}.items():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-12)
    for name, after in values_of(module).items():
        if name.startswith("state."):
            torch.testing.assert_close(values[name] + aux.state[name], after, rtol=1e-12, atol=1e-12)


def logits_of(built: Any, values: Params, example: Task, **options: Any) -> Tensor:
    """Return a learner's logits of the queries in an evaluation."""
    found: Tensor = built.predict(values, built.adapt(values, example.support, **options), example.query.x)
    return found


def assert_order_and_labels_are_only_names(built: Any, values: Params) -> None:
    """Fail unless the order of the support set does not matter, and other labels permute the logits."""
    example, order = numbered(), torch.tensor([2, 0, 1])
    expected = logits_of(built, values, example)
    mixed = Examples(*(part[torch.tensor([3, 1, 5, 0, 4, 2])] for part in example.support))
    torch.testing.assert_close(logits_of(built, values, example._replace(support=mixed)), expected)
    relabelled = example._replace(support=example.support._replace(y=order[example.support.y]))
    torch.testing.assert_close(logits_of(built, values, relabelled)[:, order], expected)
    assert expected.std(1).min() > 1e-3


def assert_wrong_labels_are_chance(built: Any, values: Params) -> None:
    """Fail unless right labels score better than chance, and shuffled labels of either set do not."""
    draw = torch.Generator().manual_seed(0)
    scores: dict[str, list[Tensor]] = {"right": [], "support": [], "query": []}
    losses = []
    for seed in range(60):
        example = numbered(seed, shots=4, queries=10)
        mixed = example.support._replace(y=example.support.y[torch.randperm(12, generator=draw)])
        right, wrong = (logits_of(built, values, one) for one in (example, example._replace(support=mixed)))
        shuffled = example.query.y[torch.randperm(30, generator=draw)]
        for name, logits, y in (
            ("right", right, example.query.y), ("support", wrong, example.query.y), ("query", right, shuffled),
        ):  # fmt: skip
            scores[name].append((logits.argmax(-1) == y).double().mean())
        losses.append(F.cross_entropy(right, shuffled))
    means = {name: float(torch.stack(found).mean()) for name, found in scores.items()}
    assert means["right"] > 0.5
    assert abs(means["support"] - 1 / 3) < 0.06
    assert abs(means["query"] - 1 / 3) < 0.03
    assert torch.stack(losses).mean() > torch.log(torch.tensor(3.0))
