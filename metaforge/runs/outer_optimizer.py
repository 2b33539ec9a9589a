"""The outer loop's state: a learner's values, and what the outer optimiser remembers of their gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metaforge.authoring.functional import split_state
from metaforge.authoring.protocols import Params
from metaforge.config.settings import TrainConfig
from metaforge.errors import CheckpointError


class Snapshot(NamedTuple):
    """All that the outer loop knows after a step, copied: the learner's values, and the optimiser's tensors."""

    values: Params
    training: Params


class OuterOptimizer:
    """The outer optimiser at work on a learner's values."""

    def __init__(self, config: TrainConfig, values: Params, training: Params | None = None) -> None:
        params, self._state = split_state(values)
        self._config = config
        # Torch's fused optimisers read memory from first to last, whatever the strides.
        dense = torch.contiguous_format
        self._leaves = {name: value.clone(memory_format=dense).requires_grad_() for name, value in params.items()}
        self._optimizer = _optimizer_for(config, list(self._leaves.values()))
        self._restore(training or {})

    def step(self, grads: Params, change: Params, *, norm: float, done: float) -> None:
        """Descend along a meta-gradient of that norm and add `change` to the state; `done` is the share of the run."""
        factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * factor[self._config.schedule]
        scale = min(1.0, self._config.clip / (norm + 1e-12)) if self._config.clip else 1.0
        for name, leaf in self._leaves.items():
            leaf.grad = (grads[name] * scale if scale != 1.0 else grads[name]).contiguous()
        self._optimizer.step()
        self._state = {name: (value + change.get(name, 0)).detach() for name, value in self._state.items()}

    def snapshot(self) -> Snapshot:
        """Return copies: the optimiser writes in place."""
        values = {name: value.detach().clone() for name, value in (self._leaves | self._state).items()}
        return Snapshot(values, {name: value.detach().clone() for name, value in self._remembered().items()})

    def _remembered(self) -> Params:
        """Return the optimiser's own tensors, `<slot>.<name of the parameter>`."""
        found = Params()
        for name, leaf in self._leaves.items():
            slots = self._optimizer.state.get(leaf, {})
            found |= {f"{slot}.{name}": value for slot, value in slots.items() if isinstance(value, Tensor)}
        return found

    def _restore(self, training: Params) -> None:
        self._require_whole(training)
        for key, value in training.items():
            slot, _, name = key.partition(".")
            if name not in self._leaves or value.shape not in (self._leaves[name].shape, torch.Size()):
                raise CheckpointError(
                    f"The outer optimiser's {key!r} belongs to no parameter of this learner.",
                    remedy="resume the run with the options that it was trained with",
                )
            # The count of steps stays on the CPU, as the optimiser keeps it.
            there = value.clone() if value.dim() == 0 else value.to(self._leaves[name].device, copy=True).contiguous()
            self._optimizer.state[self._leaves[name]][slot] = there

    def _require_whole(self, training: Params) -> None:
        """Raise `CheckpointError` where some of what the optimiser remembers of its steps is missing, or is no number.

        It would fail in its next step, and not say why.
        """
        for name, leaf in self._leaves.items() if training and self._config.optimizer == "adam" else ():
            for slot in ("step", "exp_avg", "exp_avg_sq"):
                found = training.get(f"{slot}.{name}")
                if found is None or found.dtype != (torch.float32 if slot == "step" else leaf.dtype):
                    raise CheckpointError(
                        f"The outer optimiser's {slot!r} of {name!r} is missing, or is no number of its precision.",
                        remedy="resume the run with the options that it was trained with",
                    )


def _optimizer_for(config: TrainConfig, leaves: list[Tensor]) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adam" else torch.optim.SGD
    # On the CPU all parameters in one call, a fourth of the time; elsewhere torch chooses by itself.
    fused = True if all(leaf.device.type == "cpu" and leaf.is_floating_point() for leaf in leaves) else None
    return kind(leaves, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
