"""Whether a network gives the same numbers as plain PyTorch: as a pure function, and under a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.layers.exchange import BATCH_NORMS, DROPOUTS, untouched_layers
from metaforge.authoring.layers.noise import KeyedNoise
from metaforge.authoring.model import Model
from metaforge.authoring.network import blank_examples, seeded
from metaforge.authoring.progress import with_progress
from metaforge.authoring.protocols import Examples, Learner, Params, Pass, Task, TaskSpec
from metaforge.engine.batch import MetaStep, meta_gradients
from metaforge.engine.chunks import chunk_gradients
from metaforge.engine.compiler import Compiler
from metaforge.engine.plans import Plan

_KEY = make_key(0, "network check")
_INPUTS = 4
# Standard deviation of the noise that is added to weights: scales of one and biases of zero would hide mistakes.
_PERTURBATION = 0.01
# A difference above this may be one of rounding, whose size is then measured.
_SMALL, _ROUNDING = 1e-10, 1e-14


class Comparison(NamedTuple):
    """How far two computations of the same numbers are apart.

    Attributes:
        difference: The largest difference, relative to the largest number.
        where: The first layer whose output differs, or the parameter whose gradient differs most.
        dtype: The type of the numbers.
        noise: The difference that rounding causes: what a relative change of the parameters by 1e-14 makes of the
            numbers. It is large where a computation is ill-conditioned, such as batch norm of very few positions; 0 if
            it was not measured, because the difference is small.
    """

    difference: float
    where: str = ""
    dtype: torch.dtype = torch.float64
    noise: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Return whether the difference is at most a tolerance, or not more than rounding explains."""
        return self.difference <= max(tolerance, 10 * self.noise)


def compare_module(network: nn.Module, x_shape: tuple[int, ...]) -> Comparison:
    """Compare a network as a pure function with the module itself: loss and first gradient, on one random batch.

    It is the training pass, and the evaluation too if no batch norm is in training mode. Layers of dropout are off,
    because their keyed noise is not torch's.

    Args:
        network: The network, which is not changed.
        x_shape: Shape of one input.

    Returns:
        The largest difference of the two, in float64 or, if the network does not run in it, in float32.

    Raises:
        ConfigError: The network is refused.
    """
    Model(lambda: network)  # It is refused for what it is, before it is copied.
    try:
        return _compared(network, x_shape, torch.float64)
    except (RuntimeError, TypeError):
        # Some networks have numbers of float32 in their code.
        return _compared(network, x_shape, torch.float32)._replace(dtype=torch.float32)


def _compared(network: nn.Module, x_shape: tuple[int, ...], dtype: torch.dtype) -> Comparison:
    native = copy.deepcopy(network).to(dtype)
    for number, value in enumerate(native.parameters()):
        if value.is_floating_point():
            value.data += _PERTURBATION * normal(fold_in(_KEY, number), value.shape, dtype)
    for module in native.modules():
        if isinstance(module, DROPOUTS) and type(module) in DROPOUTS:
            module.p = 0.0
    x = normal(fold_in(_KEY, "inputs"), (_INPUTS, *x_shape), dtype)
    model = Model(lambda: native)
    values = model.init(_KEY)
    found = [Comparison(0.0)]
    for at in (Pass(_KEY, 0, "support"), Pass(None, 0, "support")):
        if at.key is None and any(isinstance(module, BATCH_NORMS) and module.training for module in native.modules()):
            continue
        ours, theirs = _Outputs(), _Outputs()
        params, state = split_state(values)
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        with ours.recorded(model.module):
            loss, grads = _gradients(model(params | state, x, at), params)
        plain = copy.deepcopy(native).eval() if at.key is None else copy.deepcopy(native)
        # Noise of functions is drawn in the same order as by the model, so from the same keys.
        with theirs.recorded(plain), seeded(_KEY), nullcontext() if at.key is None else KeyedNoise(at):
            params = {f"model.{name}": value for name, value in plain.named_parameters() if value.requires_grad}
            native_loss, native_grads = _gradients(plain(x), params)
        layer = theirs.first_difference(ours)
        found.append(Comparison(_relative(loss, native_loss), layer or "the loss"))
        found.append(_largest(grads, native_grads, layer))
    return max(found, key=lambda one: one.difference)


def _gradients(output: Tensor, params: Params) -> tuple[Tensor, Params]:
    """Return a weighted sum of an output, and its gradient; zeros for a parameter that it does not depend on."""
    loss = (output * normal(fold_in(_KEY, "loss"), output.shape, output.dtype)).sum()
    if not loss.requires_grad:
        return loss, {}
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    pairs = zip(params.items(), grads, strict=True)
    return loss.detach(), {name: torch.zeros_like(p) if grad is None else grad for (name, p), grad in pairs}


class _Outputs:
    """The outputs of the modules of a network, in the order in which they are computed; of each, the first."""

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}

    @contextmanager
    def recorded(self, network: nn.Module) -> Iterator[None]:
        """Record the outputs of a network in the context."""
        handles = [
            module.register_forward_hook(lambda module, inputs, output, name=name: self._note(name, output))
            for name, module in network.named_modules()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            self._found.setdefault(name, output.detach())

    def first_difference(self, other: _Outputs, tolerance: float = 1e-7) -> str:
        """Return the first module whose output is not that of the module of this name in `other`; empty if none."""
        for name, output in self._found.items():
            if name in other._found and not _relative(other._found[name], output) <= tolerance:
                return name or "the network"
        return ""


def compare_plan(
    make: Callable[[TaskSpec], Learner], spec: TaskSpec, plan: Plan, *, compiled: bool = False
) -> Comparison:
    """Compare the meta-gradient of two tiny tasks under a plan with plan `loop` on torch's own layers, in float64.

    Args:
        make: Builds a learner for tasks of a spec.
        spec: The spec of the tasks, which get one support and one query example for each class.
        plan: The plan.
        compiled: Whether the step is compiled too.
    """
    spec = replace(spec, shape=spec.shape._replace(shots=1, queries=1))
    learner = make(spec)
    with untouched_layers():
        reference = make(spec)
    values = {name: value.double() for name, value in learner.init(_KEY).items()}
    params, state = split_state(values)
    params = {name: v + _PERTURBATION * normal(fold_in(_KEY, name), v.shape, v.dtype) for name, v in params.items()}
    values = with_progress(params | state, step=1, share=0.5)
    tasks, keys = tiny_tasks(spec), torch.stack([fold_in(_KEY, number) for number in range(2)])
    step = Compiler(chunk_gradients(learner, plan)) if compiled else None
    plain = partial(meta_gradients, reference, tasks=tasks, keys=keys, plan="loop")
    expected = plain(values)
    found = _compared_steps(meta_gradients(learner, values, tasks, keys, plan=plan, compiled=step), expected)
    if found.difference <= _SMALL:
        return found
    moved = plain(values | moved_by_rounding(params))
    return found._replace(noise=_compared_steps(moved, expected).difference)


def moved_by_rounding(params: Params) -> Params:
    """Return parameters that differ from these by a relative 1e-14, a little more than rounding makes of them."""
    draws = {name: normal(fold_in(_KEY, f"rounding of {name}"), v.shape, v.dtype) for name, v in params.items()}
    return {name: value * (1 + _ROUNDING * draws[name]) for name, value in params.items()}


def _compared_steps(found: MetaStep, expected: MetaStep) -> Comparison:
    losses = Comparison(_relative(found.losses, expected.losses), "the loss")
    return max(losses, _largest(found.grads, expected.grads), key=lambda one: one.difference)


def tiny_tasks(spec: TaskSpec, count: int = 2) -> Task:
    """Return random tasks `[count, ...]` in float64, each with as many query as support examples."""

    def examples(number: int) -> Examples:
        blank = blank_examples(spec)
        key = fold_in(_KEY, number)
        x = normal(key, blank.x.shape, torch.float64)
        y = normal(fold_in(key, "y"), blank.y.shape, torch.float64) if spec.kind.name == "regression" else blank.y
        return Examples(x, y.double() if y.is_floating_point() else y)

    each = [Task(examples(2 * number), examples(2 * number + 1)) for number in range(count)]
    tasks: Task = tree_map(lambda *leaves: torch.stack(leaves), *each)
    return tasks._replace(classes=torch.arange(spec.shape.ways).expand(count, -1)) if spec.classes else tasks


def _largest(found: Params, expected: Params, layer: str = "") -> Comparison:
    """Return the largest difference of two gradients, relative to the largest entry of the expected one."""
    scale = max((float(grad.abs().max()) for grad in expected.values() if grad.numel()), default=0.0)
    differences = {name: _apart(found[name], grad) / (scale or 1.0) for name, grad in expected.items()}
    worst = max(differences, key=lambda name: differences[name], default="")
    return Comparison(differences.get(worst, 0.0), layer or worst)


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return _apart(found, expected) / (scale or 1.0)


def _apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors of one shape, which is infinite where only one is not finite."""
    if not expected.numel():
        return 0.0
    apart = float((found.detach() - expected.detach()).abs().nan_to_num(nan=float("inf")).max())
    both = bool(torch.equal(found.isfinite(), expected.isfinite()))
    return apart if both and apart != float("inf") else float("inf")
