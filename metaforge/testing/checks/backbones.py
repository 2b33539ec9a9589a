"""Checks of backbones alone; the checks of learners run on the toy learner with the backbone, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metaforge.authoring.keys import make_key
from metaforge.authoring.network import seeded
from metaforge.authoring.protocols import Backbone, TaskSpec
from metaforge.testing.bench import build_bench, difference
from metaforge.testing.check import check
from metaforge.testing.subject import Subject


@check("backbone")
def build(subject: Subject) -> None:
    """`build` returns a new module on each call, with initial weights that are determined by torch's seed."""
    backbone: Backbone = subject.build()
    spec = build_bench(subject).spec
    first, second = (_seeded_build(backbone, spec, 0) for _ in range(2))
    shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    is_new = first is not second and not shared
    assert is_new, "two calls of build return the same module or share weights; create new ones on each call"
    mismatch = difference(dict(first.named_parameters()), dict(second.named_parameters()))
    assert not mismatch, (
        f"two calls with the same seed give different weights: {mismatch}; draw them from torch's generator only"
    )
    if any(bool((value != value.flatten()[0]).any()) for value in first.parameters()):
        other = _seeded_build(backbone, spec, 1)
        changed = difference(dict(first.named_parameters()), dict(other.named_parameters()))
        assert changed, "two seeds give the same weights; draw them from torch's generator"


def _seeded_build(backbone: Backbone, spec: TaskSpec, seed: int) -> nn.Module:
    with seeded(make_key(seed, "weights")):
        return backbone.build(spec)


@check("backbone")
def features(subject: Subject) -> None:
    """The module maps `n` inputs to finite features `[n, ...]` for any `n`, and its first call adds no parameters."""
    bench = build_bench(subject)
    module = _seeded_build(subject.build(), bench.spec, 0).eval()
    lazy = [name for name, value in module.named_parameters() if is_lazy(value)]
    assert not lazy, f"the parameters {lazy} are uninitialised; give every layer its sizes, from spec.x_shape"
    names = set(dict(module.named_parameters()))
    task = bench.tasks(1, dtype=torch.float32)
    shapes = set()
    for n in (1, 4):
        with torch.no_grad():
            output = module(task.query.x[0, :n])
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
