"""Whether a network gives the numbers of plain PyTorch, by every plan: the table of `metaforge check --backbone`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from metaforge.authoring.descent import Chain
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import CLASSIFICATION
from metaforge.authoring.protocols import Learner, Parts, TaskShape, TaskSpec
from metaforge.engine.network_check import Comparison, compare_module, compare_plan, tiny_tasks
from metaforge.engine.plans import Plan, choose_plan
from metaforge.engine.probe import Probe, probe_loss
from metaforge.errors import ConfigError, MetaForgeError
from metaforge.registry.loading import first_line
from metaforge.testing.toy import ToyDescent, ToyLearner

Way = Literal["module", "loop", "vmap", "fold", "compiled"]
WAYS: tuple[Way, ...] = get_args(Way)
# Largest relative difference that counts as equal. Compiled code computes elementary functions by other algorithms.
TOLERANCE = 1e-9
_COMPILED, _FLOAT32 = 1e-6, 1e-3
_CLASSES = 3


class Result(NamedTuple):
    """How a network was computed in one way.

    Attributes:
        way: `module`: loss and first gradient of the pure function. A plan, or `compiled` for the automatic plan in a
            compiled step: the meta-gradient of an inner step on all parameters.
        status: `equal` or `different`, compared with plain PyTorch; or `refused`, with a message.
        difference: The largest relative difference; None if the network was refused.
        message: Why it was refused, where it differs, or that rounding explains the difference.
    """

    way: Way
    status: Literal["equal", "different", "refused"]
    difference: float | None
    message: str


def check_network(
    build: Callable[[], nn.Module], x_shape: tuple[int, ...], ways: Sequence[Way] = WAYS
) -> Iterator[Result]:
    """Compare a network with plain PyTorch in each way, in float64; a network that is refused ends the comparison.

    Args:
        build: Builds the network, with equal weights in each call or not.
        x_shape: Shape of one input.
        ways: The ways in which it is computed.

    Example:
        >>> from torch import nn
        >>> from metaforge.testing.networks import check_network
        >>> [result.status for result in check_network(lambda: nn.Linear(3, 2), (3,), ["module", "fold"])]
        ['equal', 'equal']
    """
    network = build()
    spec = TaskSpec(CLASSIFICATION, x_shape, _CLASSES, TaskShape(_CLASSES, 1, 1))

    def make(spec: TaskSpec) -> Learner:
        return ToyLearner(_OPTIONS, Parts(spec, lambda: network, Chain({"toy": _DESCENT})))

    for way in ways:
        result = _result(way, network, make, spec)
        yield result
        if way == "module" and result.status == "refused":
            return


_OPTIONS = InnerLoopOptions.model_validate({"steps": 1, "adapt": "all"})
_DESCENT = ToyDescent(ToyDescent.Config())


def _result(way: Way, network: nn.Module, make: Callable[[TaskSpec], Learner], spec: TaskSpec) -> Result:
    try:
        found = compare_module(network, spec.x_shape) if way == "module" else _by_plan(way, make, spec)
    except Exception as error:
        message = f"{error.what} ({error.where})" if isinstance(error, MetaForgeError) else first_line(error)
        return Result(way, "refused", None, message)
    bound = _COMPILED if way == "compiled" else TOLERANCE if found.dtype == torch.float64 else _FLOAT32
    equal = found.within(bound)
    message = "" if equal else found.where
    if equal and found.difference > bound:
        message = f"ill-conditioned: rounding alone makes a difference of {found.noise:.1g}"
    return Result(way, "equal" if equal else "different", found.difference, message)


def _by_plan(way: Plan | Literal["compiled"], make: Callable[[TaskSpec], Learner], spec: TaskSpec) -> Comparison:
    learner = make(spec)
    probe = _probe(learner, spec)
    if way == "compiled":
        return compare_plan(make, spec, choose_plan(learner, "auto", probe), compiled=True)
    if way != "loop" and probe.not_batched_because:
        raise ConfigError(probe.not_batched_because, where=f"engine.plan = {way!r}")
    return compare_plan(make, spec, choose_plan(learner, way, probe))


def _probe(learner: Learner, spec: TaskSpec) -> Probe:
    key = make_key(0)
    values = {name: value.double() for name, value in learner.init(key).items()}
    return probe_loss(learner, values, tiny_tasks(spec, 1), key)
