"""The outer optimiser: updates the parameters of a learner from meta-gradients, and can be saved and restored."""

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
    """Copies of the values of a learner, and of the tensors in the optimiser's state (`training`), after a step."""

    values: Params
    training: Params


class OuterOptimizer:
    """A torch optimiser over the parameters of a learner.

    Args:
        config: The settings of the outer loop: optimiser, learning rate and its schedule, clipping, weight decay.
        values: The values of the learner. The optimiser updates the parameters, but neither the `state.` entries nor
            what `train.freeze` matches.
        training: The tensors in the optimiser's state from an earlier `snapshot`; None for a new run.

    Raises:
        CheckpointError: `training` does not belong to these values.
    """

    def __init__(self, config: TrainConfig, values: Params, training: Params | None = None) -> None:
        params, self._state = split_state(values, config.freeze)
        self._config = config
        # The fused optimisers of torch read memory contiguously and ignore strides.
        dense = torch.contiguous_format
        self._leaves = {name: value.clone(memory_format=dense).requires_grad_() for name, value in params.items()}
        self._optimizer = _torch_optimizer(config, list(self._leaves.values()))
        self._restore(training or {})

    def step(self, grads: Params, change: Params, *, norm: float, done: float) -> None:
        """Update the parameters by a meta-gradient, and add `change` to the state entries.

        Args:
            grads: The meta-gradient, one tensor for each parameter.
            change: What is added to the state entries; entries without a change stay as they are.
            norm: The norm of the meta-gradient, for clipping.
            done: The fraction of the run that is done, in [0, 1], for the schedule of the learning rate.
        """
        factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * factor[self._config.schedule]
        scale = min(1.0, self._config.clip / (norm + 1e-12)) if self._config.clip else 1.0
        for name, leaf in self._leaves.items():
            leaf.grad = (grads[name] * scale if scale != 1.0 else grads[name]).contiguous()
        self._optimizer.step()
        # An entry without a change is not added to: the sum of -0.0 and 0 would have another sign.
        changed = {name: (self._state[name] + value).detach() for name, value in change.items()}
        self._state = self._state | changed

    def snapshot(self) -> Snapshot:
        """Return copies of all tensors, which later steps do not change."""
        values = {name: value.detach().clone() for name, value in (self._leaves | self._state).items()}
        return Snapshot(values, {name: value.detach().clone() for name, value in self._slots().items()})

    def _slots(self) -> Params:
        """Return the tensors of the torch optimiser's state by `<slot>.<parameter>`, as in `exp_avg.model.0.weight`."""
        tensors = Params()
        for name, leaf in self._leaves.items():
            slots = self._optimizer.state.get(leaf, {})
            tensors |= {f"{slot}.{name}": value for slot, value in slots.items() if isinstance(value, Tensor)}
        return tensors

    def _restore(self, training: Params) -> None:
        require_matching(self._config, self._leaves, training)
        for key, value in training.items():
            slot, _, name = key.partition(".")
            leaf = self._leaves[name]
            # The step count is a scalar that torch keeps on the CPU.
            restored = value.clone() if value.dim() == 0 else value.to(leaf.device, copy=True).contiguous()
            self._optimizer.state[leaf][slot] = restored


def require_matching(config: TrainConfig, values: Params, training: Params) -> None:
    """Raise `CheckpointError` unless the saved tensors of an optimiser belong to these values and are complete.

    An incomplete state would make torch fail in the next step, with a message that does not name the cause.
    """
    params, _ = split_state(values, config.freeze)
    for key, value in training.items():
        name = key.partition(".")[2]
        if name not in params or value.shape not in (params[name].shape, torch.Size()):
            raise CheckpointError(
                f"The tensor {key!r} of the outer optimiser belongs to no parameter of this learner.",
                remedy="resume the run with the options that it was trained with",
            )
    for name, param in params.items() if training and config.optimizer == "adam" else ():
        for slot in ("step", "exp_avg", "exp_avg_sq"):
            tensor = training.get(f"{slot}.{name}")
            if tensor is None or tensor.dtype != (torch.float32 if slot == "step" else param.dtype):
                raise CheckpointError(
                    f"The tensor {slot!r} of the outer optimiser for {name!r} is missing or has another dtype.",
                    remedy="resume the run with the options that it was trained with",
                )


def _torch_optimizer(config: TrainConfig, leaves: list[Tensor]) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adam" else torch.optim.SGD
    # On the CPU the fused optimiser updates all parameters in one call and takes a quarter of the time. On other
    # devices torch chooses.
    fused = True if all(leaf.device.type == "cpu" and leaf.is_floating_point() for leaf in leaves) else None
    return kind(leaves, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
