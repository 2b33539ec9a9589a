"""Checks of backbones alone, also with a context; the checks of learners run on the toy learner with the backbone."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metaforge.authoring.keys import make_key, normal
from metaforge.authoring.network import build_backbone, seeded
from metaforge.authoring.protocols import Backbone, TaskSpec
from metaforge.testing.bench import Bench, build_bench, difference
from metaforge.testing.check import check
from metaforge.testing.subject import Subject

# Size of the context vector of a backbone that takes one.
CONTEXT = 3


@check("backbone")
def build(subject: Subject) -> None:
    """`build` returns a new module on each call, with initial weights that are determined by torch's seed."""
    backbone: Backbone = subject.build()
    spec = build_bench(subject).spec
    for context in _contexts(backbone):
        _check_build(backbone, spec, context)


def _contexts(backbone: Backbone) -> tuple[int, ...]:
    """Return the sizes of the context vectors that a backbone is built with: 0, and another one if it takes one."""
    return (0, CONTEXT) if "context" in inspect.signature(backbone.build).parameters else (0,)


def _check_build(backbone: Backbone, spec: TaskSpec, context: int) -> None:
    first, second = (_seeded_build(backbone, spec, 0, context) for _ in range(2))
    shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    is_new = first is not second and not shared
    assert is_new, "two calls of build return the same module or share weights; create new ones on each call"
    mismatch = difference(dict(first.named_parameters()), dict(second.named_parameters()))
    assert not mismatch, (
        f"two calls with the same seed give different weights: {mismatch}; draw them from torch's generator only"
    )
    if any(bool((value != value.flatten()[0]).any()) for value in first.parameters()):
        other = _seeded_build(backbone, spec, 1, context)
        changed = difference(dict(first.named_parameters()), dict(other.named_parameters()))
        assert changed, "two seeds give the same weights; draw them from torch's generator"


def _seeded_build(backbone: Backbone, spec: TaskSpec, seed: int, context: int) -> nn.Module:
    with seeded(make_key(seed, "weights")):
        return build_backbone(backbone, spec, context)


@check("backbone")
def features(subject: Subject) -> None:
    """The module maps `n` inputs to finite features `[n, ...]` for any `n`, and its first call adds no parameters."""
    bench, backbone = build_bench(subject), subject.build()
    for context in _contexts(backbone):
        _check_features(bench, _seeded_build(backbone, bench.spec, 0, context).eval(), context)


def _check_features(bench: Bench, module: nn.Module, context: int) -> None:
    lazy = [name for name, value in module.named_parameters() if is_lazy(value)]
    assert not lazy, f"the parameters {lazy} are uninitialised; give every layer its sizes, from spec.x_shape"
    names = set(dict(module.named_parameters()))
    task = bench.tasks(1, dtype=torch.float32)
    given = (normal(make_key(0, "context"), (context,)),) if context else ()
    shapes = set()
    for n in (1, 4):
        with torch.no_grad():
            output = module(task.query.x[0, :n], *given)
        valid = isinstance(output, Tensor) and output.dim() >= 2 and output.shape[0] == n
        assert valid, f"for {n} inputs the module returns {_description(output)}; return a tensor [{n}, ...]"
        assert bool(output.isfinite().all()), f"for {n} inputs the features are not finite; check the initial weights"
        shapes.add(tuple(output.shape[1:]))
    assert len(shapes) == 1, (
        f"the shape of the features depends on the number of inputs: {sorted(shapes)}; it must always be the same"
    )
    assert names == set(dict(module.named_parameters())), (
        "the first call of the module adds parameters; create all of them in build"
    )


def _description(output: object) -> str:
    return f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
