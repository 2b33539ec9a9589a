"""What a torch optimiser keeps between steps, as tensors and scalars by name that a checkpoint can hold."""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaforge.authoring.protocols import Params
from metaforge.errors import CheckpointError, ContractError

Scalar = bool | int | float | str | None
_SCALARS = (bool, int, float, str, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque)
# The most levels of containers in attributes that are searched for state.
_DEPTH = 3


class Kept(NamedTuple):
    """What an optimiser keeps: its tensors, and its numbers, strings and Nones.

    Names are `<slot>.<parameter>`, such as `exp_avg.model.0.weight`, and `group <index>.<entry>` for what steps change
    in a parameter group.
    """

    tensors: Params
    scalars: Mapping[str, Scalar]


class OptimizerState:
    """Reads what a torch optimiser keeps between steps, and restores it.

    Args:
        optimizer: The optimiser, before its first step.
        leaves: Its parameters by name.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, leaves: Params) -> None:
        self._optimizer, self._leaves = optimizer, leaves
        # By identity, because the hash of a tensor is a call of Python code.
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        # Options such as decay rates come from the configuration; only what steps change is state.
        self._options = [{k: copy.deepcopy(v) for k, v in _state_of(group)} for group in optimizer.param_groups]
        self._attributes = {name: _contents(value) for name, value in _attributes(optimizer)}

    def kept(self) -> Kept:
        """Return copies of everything that the optimiser keeps.

        Raises:
            ContractError: It keeps something that a checkpoint cannot hold.
        """
        self._require_nothing_elsewhere()
        tensors, scalars = Params(), dict[str, Scalar]()
        for name, value in self._entries():
            if isinstance(value, Tensor):
                tensors[name] = value.detach().clone()
            elif isinstance(value, _SCALARS):
                scalars[name] = value
            else:
                raise ContractError(
                    f"it keeps {name!r} of type {type(value).__name__} between steps, which a checkpoint cannot hold:"
                    " keep tensors, numbers, strings, booleans and None"
                )
        return Kept(tensors, scalars)

    def _entries(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and value of each entry of the state, and of what steps have changed in the groups."""
        for leaf, slots in self._optimizer.state.items():
            parameter = self._names.get(id(leaf))
            if parameter is None:
                raise ContractError(f"its state has the key {str(leaf)[:40]!r}, which is none of its parameters")
            for slot, value in slots.items():
                if not isinstance(slot, str) or not slot.isidentifier():
                    raise ContractError(f"its state has the key {slot!r}, which is not an identifier")
                yield f"{slot}.{parameter}", value
        for index, (group, options) in enumerate(zip(self._optimizer.param_groups, self._options, strict=True)):
            for entry, value in _state_of(group):
                if entry not in options or _differ(value, options[entry]):
                    yield f"group {index}.{entry}", value

    def _require_nothing_elsewhere(self) -> None:
        """Raise `ContractError` for state in attributes of the optimiser, which a checkpoint would miss."""
        for name, value in _attributes(self._optimizer):
            contents = _contents(value)
            changed = contents is not None and self._attributes.get(name) != contents
            if changed or self._holds_state(value):
                raise ContractError(
                    f"its attribute {name!r} changes or holds tensors, but only `state` and `param_groups` are saved"
                )

    def _holds_state(self, value: Any, depth: int = _DEPTH) -> bool:
        """Return whether a value is or contains an optimiser, a generator, or a tensor other than a parameter."""
        if isinstance(value, Tensor):
            return id(value) not in self._names
        inside = list(value.values()) if isinstance(value, Mapping) else value
        nested = (
            isinstance(inside, _CONTAINERS) and depth > 0 and any(self._holds_state(each, depth - 1) for each in inside)
        )
        return isinstance(value, (torch.optim.Optimizer, torch.Generator)) or nested

    def restore(self, kept: Kept, expected: Kept) -> None:
        """Restore what `kept` returned for an optimiser of the same kind over the same parameters.

        Args:
            kept: What is restored.
            expected: What an optimiser of this kind keeps after a step, to detect what is missing. Its devices are
                used: torch keeps some scalar tensors on the CPU.

        Raises:
            CheckpointError: `kept` belongs to other parameters, or is incomplete.
        """
        for name in (*kept.tensors, *kept.scalars):
            self._place(name)
        for name in (*expected.tensors, *expected.scalars):
            self._require_like(name, kept, expected)
        for name, value in kept.tensors.items():
            place, key, default = self._place(name)
            device = expected.tensors[name].device if name in expected.tensors else default
            place[key] = value.to(device, copy=True).contiguous()
        for name, scalar in kept.scalars.items():
            place, key, _ = self._place(name)
            place[key] = scalar

    def _require_like(self, name: str, kept: Kept, expected: Kept) -> None:
        """Raise `CheckpointError` if an entry that is expected is missing or has another dtype or shape.

        An incomplete state would make torch fail in the next step, with a message that does not name the cause.
        """
        if name not in kept.tensors and name not in kept.scalars:
            raise _error(name, "is missing")
        if name not in kept.tensors or name not in expected.tensors:
            return
        ours, theirs = expected.tensors[name], kept.tensors[name]
        leaf = self._leaves.get(name.partition(".")[2])
        # A tensor that is not shaped like its parameter may grow from step to step, such as a history.
        fixed = leaf is None or ours.shape in (leaf.shape, torch.Size())
        if ours.dtype != theirs.dtype or (fixed and ours.shape != theirs.shape):
            found = f"{tuple(theirs.shape)} {theirs.dtype}"
            raise _error(name, f"is {found}, but should be {tuple(ours.shape)} {ours.dtype}")

    def _place(self, name: str) -> tuple[dict[str, Any], str, torch.device]:
        """Return the dictionary of an entry, its key in it, and the device of the parameters that it is for."""
        slot, _, rest = name.partition(".")
        groups = {f"group {index}": group for index, group in enumerate(self._optimizer.param_groups)}
        if slot in groups and rest not in ("", "params", "lr"):
            return groups[slot], rest, groups[slot]["params"][0].device
        if rest not in self._leaves:
            raise _error(name, "belongs to no parameter of this learner")
        leaf = self._leaves[rest]
        return self._optimizer.state[leaf], slot, leaf.device


def _error(name: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"The entry {name!r} of the outer optimiser {problem}.",
        remedy="resume the run with the options that it was trained with",
    )


def _state_of(group: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a parameter group except its parameters and its rate, which the engine sets."""
    return ((key, value) for key, value in group.items() if key not in ("params", "lr"))


def _attributes(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an optimiser that those of torch do not have."""
    known = _attributes_of_torch()
    return ((name, value) for name, value in vars(optimizer).items() if name not in known)


@functools.cache
def _attributes_of_torch() -> frozenset[str]:
    return frozenset(vars(torch.optim.SGD([torch.zeros(1)], fused=True)))


def _contents(value: Any, depth: int = _DEPTH) -> tuple[Any, ...] | None:
    """Return a copy of the numbers, strings and Nones in a value, to be compared; None if it has nothing but others.

    Tensors are others: those of parameters are no state, and all other tensors are refused in any case.
    """
    if isinstance(value, _SCALARS):
        return (value,)
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    inside = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(inside, _CONTAINERS) or depth == 0:
        return None
    if isinstance(value, Mapping):
        found = [(key, contents) for key, each in inside if (contents := _contents(each, depth - 1)) is not None]
        return None if inside and not found else (dict, found)
    every = [contents for each in inside if (contents := _contents(each, depth - 1)) is not None]
    return None if inside and not every else (type(value), every)


def _differ(one: Any, other: Any) -> bool:
    if one is other:
        return False  # Only what cannot change is its own deep copy.
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return True
    return type(one) is not type(other) or bool(one != other)
