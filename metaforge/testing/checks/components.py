"""What adapters, regularizers and backbones must do of themselves, beside what a learner built around them must."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metaforge.authoring.keys import make_key
from metaforge.authoring.network import seeded
from metaforge.authoring.protocols import STATE, Adapter, Backbone, Params, TaskSpec
from metaforge.testing.bench import Bench, bench, difference
from metaforge.testing.check import check
from metaforge.testing.global_state import untouched_generators
from metaforge.testing.subject import Subject


@check("adapter")
def updates(subject: Subject) -> None:
    """`update` answers in the form of the gradients, and the form of its state never changes."""
    adapter: Adapter = subject.built()
    params = {"first.weight": torch.ones(2, 3, dtype=torch.float64), "bias": torch.ones(3, dtype=torch.float64)}
    grads = {name: torch.full_like(value, 0.5) for name, value in params.items()}
    meta = {name: value.double() for name, value in adapter.init(params).items()}
    state = adapter.start(meta, params)
    for step in range(2):
        found, new = adapter.update(meta, grads, state, params, step)
        assert not (said := _unlike(found, grads)), f"update does not answer as the gradients are: {said}"
        assert not (said := _unlike(new, state)), f"update changes the form of the state: {said}"
        state = new
    known = {name: value for name, value in meta.items() if name.startswith(STATE)}
    carried = adapter.carry(meta, state)
    strangers = sorted(carried.keys() - known.keys())
    assert not strangers, f"carry adds to {strangers}, which init does not give; carry `state.` entries of init alone"


def _unlike(found: Params, wanted: Params) -> str:
    forms = [{name: (list(value.shape), str(value.dtype)) for name, value in side.items()} for side in (found, wanted)]
    return difference(forms[0], forms[1])


@check("regularizer")
def quiet(subject: Subject) -> None:
    """In evaluation, where there is no key, it gives the same predictions twice."""
    one = bench(subject)
    values, task = one.values(), one.task()
    with untouched_generators(f"evaluation with {subject.label}"):
        first, second = one.predict(values, task), one.predict(values, task)
    said = difference(first, second)
    assert not said, f"two evaluations differ: {said}; draw no noise where at.key is None, or from a key of your own"


@check("regularizer")
def effect(subject: Subject) -> None:
    """It does something: with its default options the loss, the gradient or the values are others than without it."""
    with_it, without = bench(subject), bench(subject, bare=True)
    differs = difference(_stepped(with_it), _stepped(without))
    assert differs, "values, losses and gradients are those of a run without it; let it act by default"


def _stepped(one: Bench) -> tuple[Params, Tensor, Params]:
    values = one.values()
    found = one.step(values, one.tasks(3))
    return values, found.losses, found.grads


@check("backbone")
def build(subject: Subject) -> None:
    """`build` gives a new module each time, with weights of its own that torch's seed decides."""
    backbone: Backbone = subject.built()
    spec = bench(subject).spec
    first, second = (_seeded_build(backbone, spec, 0) for _ in range(2))
    shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    anew = first is not second and not shared
    assert anew, "build gives the same module or weights twice; make new ones"
    said = difference(dict(first.named_parameters()), dict(second.named_parameters()))
    assert not said, f"one seed gives two sets of weights: {said}; draw from torch's generator alone"
    if any(bool((value != value.flatten()[0]).any()) for value in first.parameters()):
        other = _seeded_build(backbone, spec, 1)
        moved = difference(dict(first.named_parameters()), dict(other.named_parameters()))
        assert moved, "another seed gives the same weights; draw them from torch's generator"


def _seeded_build(backbone: Backbone, spec: TaskSpec, seed: int) -> nn.Module:
    with seeded(make_key(seed, "weights")):
        return backbone.build(spec)


@check("backbone")
def features(subject: Subject) -> None:
    """The module gives `[n, features...]` for any n, finite, with all its parameters there before the first pass."""
    one = bench(subject)
    module = _seeded_build(subject.built(), one.spec, 0).eval()
    lazy = [name for name, value in module.named_parameters() if is_lazy(value)]
    assert not lazy, f"{lazy} have no shape yet; build every layer with its sizes, which spec.x_shape tells"
    names = set(dict(module.named_parameters()))
    task = one.tasks(1, dtype=torch.float32)
    shapes = set()
    for n in (1, 4):
        with torch.no_grad():
            output = module(task.query.x[0, :n])
        fine = isinstance(output, Tensor) and output.dim() >= 2 and output.shape[0] == n
        fine = fine and bool(output.isfinite().all())
        assert fine, f"{n} inputs give {_described(output)}; give [{n}, features...]"
        shapes.add(tuple(output.shape[1:]))
    assert len(shapes) == 1, f"one and four inputs have features of different shapes: {sorted(shapes)}"
    assert names == set(dict(module.named_parameters())), "the first pass adds parameters; make them all in build"


def _described(output: object) -> str:
    return f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
