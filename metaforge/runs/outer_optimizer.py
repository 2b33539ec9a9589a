"""The outer optimiser: updates the parameters of a learner from meta-gradients, and can be saved and restored."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaforge.authoring.functional import matching, split_state
from metaforge.authoring.protocols import Optimizer, Params
from metaforge.config.paths import joined
from metaforge.config.settings import TrainConfig
from metaforge.errors import CheckpointError, ConfigError, ContractError
from metaforge.runs.optimizer_state import Kept, OptimizerState, Scalar
from metaforge.runs.parameter_groups import parameter_groups


class Snapshot(NamedTuple):
    """Copies of the values of a learner, and of what the torch optimiser keeps, after a step.

    Attributes:
        values: The values of the learner.
        training: The tensors that the optimiser keeps.
        scalars: The numbers, strings and Nones that it keeps.
    """

    values: Params
    training: Params
    scalars: Mapping[str, Scalar]


class OuterOptimizer:
    """A torch optimiser over the parameters of a learner.

    Args:
        config: The settings of the outer loop: learning rate, clipping, weight decay, groups of parameters.
        optimizer: The plugin that builds the torch optimiser. It is not called for a learner without parameters.
        values: The values of the learner. The optimiser updates the parameters, but neither the `state.` entries nor
            what `train.freeze` matches.
        training: The tensors that the optimiser kept in an earlier `snapshot`; None for a new run.
        scalars: The scalars of that snapshot.

    Raises:
        CheckpointError: `training` and `scalars` do not belong to these values, or are incomplete.
        ConfigError: A pattern of `train.groups` applies to no parameter, or the settings have a weight decay but the
            optimiser has none.
        ContractError: The plugin builds no optimiser that MetaForge can use.
    """

    def __init__(
        self,
        config: TrainConfig,
        optimizer: Optimizer,
        values: Params,
        training: Params | None = None,
        scalars: Mapping[str, Scalar] | None = None,
    ) -> None:
        params, self._state = split_state(values, config.freeze)
        self._config, self._plugin = config, optimizer
        # The fused optimisers of torch read memory contiguously and ignore strides.
        dense = torch.contiguous_format
        self._leaves = {name: value.clone(memory_format=dense).requires_grad_() for name, value in params.items()}
        frozen = matching(values, config.freeze)
        self._groups = parameter_groups(config, list(self._leaves), optimizer.weight_decay, frozen)
        self._optimizer = self._kept = None
        self._is_first_step = True
        if self._leaves:
            self._optimizer = torch_optimizer(optimizer, self._torch_groups())
            _require_weight_decay(self._optimizer, config)
            self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
            self._kept = OptimizerState(self._optimizer, self._leaves)
        if training or scalars:
            self._restore(Kept(training or {}, scalars or {}), values)

    def _torch_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self._leaves[name] for name in group.names], "lr": group.lr, "weight_decay": group.weight_decay}
            for group in self._groups
        ]

    def step(self, grads: Params, change: Params, *, norm: float, factor: float) -> None:
        """Update the parameters by a meta-gradient, and add `change` to the state entries.

        Args:
            grads: The meta-gradient, one tensor for each parameter.
            change: What is added to the state entries; entries without a change stay as they are.
            norm: The norm of the meta-gradient, for clipping.
            factor: What the learning rate of each group is multiplied by.

        Raises:
            ContractError: The step of the torch optimiser draws from a global generator of torch.
        """
        if self._optimizer is not None:
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor
            self._set_gradients(grads, norm)
            if self._is_first_step:
                self._first_step(self._optimizer)
            else:
                self._optimizer.step()
            self._apply_bounds()
        # An entry without a change is not added to: the sum of -0.0 and 0 would have another sign.
        changed = {name: (self._state[name] + value).detach() for name, value in change.items()}
        self._state = self._state | changed

    def _first_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step; raise `ContractError` if it draws random numbers that a resumed run would not draw again."""
        self._is_first_step = False
        devices = {leaf.device for leaf in self._leaves.values() if leaf.device.type == "cuda"}
        before = _generator_states(devices)
        optimizer.step()
        if any(not torch.equal(old, new) for old, new in zip(before, _generator_states(devices), strict=True)):
            raise ContractError(
                f"step of {type(optimizer).__name__} draws from torch's global generator, which no checkpoint saves:"
                " draw from a torch.Generator that each step seeds with the number of the step"
            )

    def _set_gradients(self, grads: Params, norm: float) -> None:
        """Set the gradients of the parameters, clipped by the norm of the whole gradient and then by value."""
        clip, bound = self._config.clip, self._config.clip_value
        scale = min(1.0, clip / (norm + 1e-12)) if clip else 1.0
        for name, leaf in self._leaves.items():
            grad = grads[name] * scale if scale != 1.0 else grads[name]
            leaf.grad = (grad if bound is None else grad.clamp(-bound, bound)).contiguous()

    @torch.no_grad()
    def _apply_bounds(self) -> None:
        for group in self._groups:
            for name in group.names if (group.min, group.max) != (None, None) else ():
                self._leaves[name].clamp_(group.min, group.max)

    def snapshot(self) -> Snapshot:
        """Return copies of everything that later steps change.

        Raises `ContractError` if the optimiser keeps something that a checkpoint cannot hold.
        """
        values = {name: value.detach().clone() for name, value in (self._leaves | self._state).items()}
        return Snapshot(values, *(Kept({}, {}) if self._kept is None else self._kept.kept()))

    def _restore(self, kept: Kept, values: Params) -> None:
        """Restore what the optimiser kept; a step of another one like it shows what that must contain."""
        if self._kept is None:
            raise CheckpointError(
                "The checkpoint has a state of the outer optimiser, but this learner has no parameters.",
                remedy="resume the run with the options that it was trained with",
            )
        other = OuterOptimizer(self._config, self._plugin, values)
        zeros = {name: torch.zeros_like(leaf) for name, leaf in self._leaves.items()}
        other.step(zeros, {}, norm=0.0, factor=1.0)
        expected = other.snapshot()
        self._kept.restore(kept, Kept(expected.training, expected.scalars))


def _require_weight_decay(optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Raise `ConfigError` if the settings have a weight decay above 0, and the optimiser would ignore it.

    Torch keeps every entry of a group, so the groups of an optimiser without weight decay have the entry too.
    """
    own = {
        joined(("train", "groups", name, "weight_decay")): group.weight_decay for name, group in config.groups.items()
    }
    found = [setting for setting, decay in {"train.weight_decay": config.weight_decay, **own}.items() if decay]
    if found and "weight_decay" not in optimizer.defaults:
        raise ConfigError(
            f"{type(optimizer).__name__} has no weight decay, so {' and '.join(found)} would have no effect.",
            where=", ".join(found),
            remedy="leave it out or set it to 0, or choose an optimizer with weight decay (--optimizer), which has"
            " 'weight_decay' among its defaults",
        )


def _generator_states(devices: Iterable[torch.device]) -> list[Tensor]:
    """Return the states of torch's global generators: that of the CPU, and those of CUDA devices."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def torch_optimizer(plugin: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimiser that a plugin builds for parameter groups; `ContractError` if it cannot be used."""
    params = [param for group in groups for param in group["params"]]
    optimizer = plugin.build(groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ContractError(f"build returns an object of type {type(optimizer).__name__}, not a torch.optim.Optimizer")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in inspect.signature(optimizer.step).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in variadic:
            raise ContractError(
                f"step of {type(optimizer).__name__} needs {parameter.name!r}, but MetaForge computes one meta-gradient"
                " per outer step and calls step() without arguments"
            )
    own = [param for group in optimizer.param_groups for param in group["params"]]
    if sorted(map(id, own)) != sorted(map(id, params)):
        raise ContractError("build returns an optimiser of other parameters than those of its groups")
    for index, group in enumerate(optimizer.param_groups):
        if isinstance(group.get("lr"), bool) or not isinstance(group.get("lr"), (int, float, Tensor)):
            raise ContractError(f"group {index} of the optimiser has no number 'lr', which the schedule sets")
    return optimizer
