"""The check before a run that its network gives the numbers of plain PyTorch; what was checked is remembered."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import torch
from torch import nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.network import seeded
from metaforge.authoring.protocols import Learner, TaskSpec
from metaforge.config.resolved import Choice, Resolved
from metaforge.data.cache import load_or_build
from metaforge.engine.network_check import Comparison, compare_module, compare_plan
from metaforge.engine.plans import Plan
from metaforge.errors import ConfigError, printable
from metaforge.registry.entry import CORE
from metaforge.runs.assembly import Components
from metaforge.system.streams import note_stream

# Float64 gives the same numbers to about 1e-15, also in deep networks; float32, which few networks need, to about 1e-5.
TOLERANCE = 1e-7
_TOLERANCE_FLOAT32 = 1e-3
# The comparison of a network with more parameters takes seconds.
_LARGE = 1_000_000


def verify_network(parts: Components, learner: Learner, spec: TaskSpec, plan: Plan) -> dict[str, Any]:
    """Compare the network of a run with the untouched module, and its meta-gradient with plain autograd.

    Args:
        parts: The plugins of the run.
        learner: The run's learner. The meta-gradient is compared if it adapts in steps.
        spec: The spec of the training tasks.
        plan: The plan of the run.

    Returns:
        What was found, for `env.json`: the largest relative differences; `{}` if the network was not compared. That of
        the meta-gradient is missing if the plan cannot run the network.

    Raises:
        ConfigError: The numbers differ.
    """
    resolved = parts.resolved
    choice, setting = resolved.backbone, resolved.run.engine.verify
    if choice is None or setting == "off":
        return {}
    with seeded(make_key(resolved.run.seed, "verify")):
        network = parts.backbone_maker(spec)()
    if setting == "auto" and choice.entry.distribution == CORE and _is_own(network, choice):
        return {}
    adapting = learner.tags.adapts and learner.tags.exact_meta_gradient and not spec.kind.needs_key

    def compare() -> dict[str, Any]:
        if sum(value.numel() for value in network.parameters()) > _LARGE:
            print("Note: the network is compared with plain PyTorch (engine.verify).", file=note_stream())
        found = {"network": _require_equal(compare_module(network, spec.x_shape))}
        if adapting and (by_plan := _compare_plan(parts, spec, plan)) is not None:
            found["meta_gradient"] = _require_equal_plan(by_plan, plan)
        return {name: torch.tensor(value).numpy() for name, value in found.items()}

    content = None if setting == "always" else _content(network, resolved, spec, plan)
    arrays = compare() if content is None else load_or_build("verified", content, compare)
    return {"verified": {name: float(value) for name, value in arrays.items()}}


def _is_own(network: nn.Module, choice: Choice) -> bool:
    """Return whether all layers of a network are torch's, MetaForge's or of the package of its backbone."""
    own = {"torch", "metaforge", choice.cls.__module__.partition(".")[0]}
    return all(type(module).__module__.partition(".")[0] in own for module in network.modules())


def _compare_plan(parts: Components, spec: TaskSpec, plan: Plan) -> Comparison | None:
    """Return how the meta-gradient compares; None if it cannot be computed.

    Then the first outer step raises the same error, and says what it was doing.
    """
    try:
        return compare_plan(parts.learner, spec, plan)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException:
        return None


def _require_equal(found: Comparison) -> float:
    if not found.within(TOLERANCE if found.dtype == torch.float64 else _TOLERANCE_FLOAT32):
        raise ConfigError(
            "The network as a pure function differs from the module itself: its loss or gradient by a relative"
            f" {found.difference:.2g}, first at {printable(found.where)!r}.",
            where="backbone",
            remedy="replace that layer; `metaforge check --backbone MODULE:CLASS` shows the whole comparison, and"
            " engine.verify = 'off' trains all the same",
        )
    return found.difference


def _require_equal_plan(found: Comparison, plan: Plan) -> float:
    if not found.within(TOLERANCE):
        raise ConfigError(
            f"The meta-gradient by plan {plan!r} differs from that of plain autograd by a relative"
            f" {found.difference:.2g}, most in {printable(found.where)!r}.",
            where="engine.plan",
            remedy="set engine.plan to another plan; engine.verify = 'off' trains all the same",
        )
    return found.difference


def _content(network: nn.Module, resolved: Resolved, spec: TaskSpec, plan: Plan) -> dict[str, object] | None:
    """Return everything that the comparison depends on; None if the source of a class is not known."""
    kinds = {type(module) for module in network.modules()}
    plugins = [choice for choice in resolved.choices() if choice.entry.kind in ("learner", "adapter", "backbone")]
    sources = [*_sources([*kinds, *(choice.cls for choice in plugins)])]
    if None in sources or any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        return None
    shapes = [(name, tuple(value.shape), str(value.dtype), value.requires_grad) for name, value in _tensors(network)]
    modes = [module.training for module in network.modules()]
    return {
        "network": hashlib.sha256(repr((repr(network), sorted(map(str, sources)), shapes, modes)).encode()).hexdigest(),
        "plugins": [_described(choice) for choice in plugins],
        "spec": repr(spec),
        "plan": plan,
        "torch": torch.__version__,
    }


def _tensors(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]


def _sources(kinds: list[type[Any]]) -> list[str | None]:
    """Return the source of each class that is not torch's; None where it cannot be read."""
    found: list[str | None] = []
    for kind in kinds:
        if kind.__module__.partition(".")[0] == "torch":
            continue
        try:
            found.append(inspect.getsource(kind))
        except (OSError, TypeError):
            found.append(None)
    return found


def _described(choice: Choice) -> str:
    return f"{choice.entry.label} {choice.entry.version} {choice.config!r}"
