"""Functions on dictionaries of parameters and on batches of tasks, and the gradient with respect to a dictionary.

All of them work under `torch.func.grad` and `torch.func.vmap`, in any order of nesting.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from metaforge.authoring.protocols import STATE, Examples, Params, Task
from metaforge.errors import ConfigError, shown


def prefixed(prefix: str, params: Params) -> Params:
    """Return the dictionary with `prefix.` in front of every name.

    The names of state entries keep `state.` in front: `state.mean` becomes `state.prefix.mean`.

    Args:
        prefix: Prefix without the final dot.
        params: Tensors by name.

    Returns:
        A new dictionary with the same tensors.

    Example:
        >>> import torch
        >>> from metaforge.authoring import prefixed
        >>> list(prefixed("encoder", {"weight": torch.ones(2), "state.mean": torch.zeros(2)}))
        ['encoder.weight', 'state.encoder.mean']
    """
    return {
        f"{STATE}{prefix}.{name.removeprefix(STATE)}" if name.startswith(STATE) else f"{prefix}.{name}": value
        for name, value in params.items()
    }


def select(values: Params, prefix: str) -> Params:
    """Return the entries whose names begin with `prefix.`, without the prefix; the inverse of `prefixed`.

    State entries are included: `state.prefix.mean` becomes `state.mean`.

    Args:
        values: Tensors by name.
        prefix: Prefix without the final dot.

    Returns:
        A new dictionary with the same tensors.

    Example:
        >>> import torch
        >>> from metaforge.authoring import select
        >>> values = {"encoder.weight": torch.ones(2), "state.encoder.mean": torch.zeros(2)}
        >>> values["decoder.bias"] = torch.ones(1)
        >>> list(select(values, "encoder"))
        ['weight', 'state.mean']
    """
    head, state_head = f"{prefix}.", f"{STATE}{prefix}."
    selected = {name[len(head) :]: value for name, value in values.items() if name.startswith(head)}
    for name, value in values.items():
        if name.startswith(state_head):
            selected[STATE + name[len(state_head) :]] = value
    return selected


def matching(names: Iterable[str], patterns: Sequence[str], *, where: str | None = None) -> tuple[str, ...]:
    """Return the names of values that match at least one pattern, in their order.

    A state entry also matches without its `state.` in front, so `model.0.*` stands for the parameters of a layer and
    its statistics.

    Args:
        names: Names of values.
        patterns: Patterns as of a shell: `*` stands for any text, dots included, `?` for one character, `[ab]` for one
            of these.
        where: The setting with the patterns, for the message; None to allow patterns that match nothing.

    Returns:
        The names that match.

    Raises:
        ConfigError: With `where`, a pattern matches no name.

    Example:
        >>> from metaforge.authoring import matching
        >>> matching(["model.0.weight", "model.2.weight", "state.model.0.mean"], ["model.0.*"], where="--freeze")
        ('model.0.weight', 'state.model.0.mean')
    """
    if not patterns:
        return ()  # In every outer step of a run that freezes nothing.
    names = tuple(names)
    for pattern in patterns if where is not None else ():
        if not matching(names, [pattern]):
            closest = difflib.get_close_matches(pattern.strip(" *?."), names, n=5, cutoff=0.0)
            raise ConfigError(
                f"The pattern {shown(pattern)} matches no value.",
                where=where or "",
                remedy=f"the nearest of the {len(names)} names are {', '.join(closest)}",
            )

    def matches(name: str) -> bool:
        return any(fnmatchcase(name, one) or fnmatchcase(name.removeprefix(STATE), one) for one in patterns)

    return tuple(name for name in names if matches(name))


def split_state(values: Params, frozen: Sequence[str] = ()) -> tuple[Params, Params]:
    """Split a learner's values into parameters, for which there are gradients, and all other entries.

    Args:
        values: Tensors by name.
        frozen: Patterns of names, see `matching`. What they match is no parameter.

    Returns:
        The parameters; and the state entries (the names that begin with `state.`), together with what is frozen.

    Example:
        >>> import torch
        >>> from metaforge.authoring import split_state
        >>> params, state = split_state({"weight": torch.ones(2), "state.mean": torch.zeros(2)})
        >>> list(params), list(state)
        (['weight'], ['state.mean'])
    """
    fixed = frozenset(matching(values, frozen))
    state = {name: value for name, value in values.items() if name.startswith(STATE) or name in fixed}
    return {name: value for name, value in values.items() if name not in state}, state


def detach_params(params: Params) -> Params:
    """Detach every tensor of a dictionary from the autograd graph.

    Args:
        params: Tensors by name.

    Returns:
        A new dictionary of detached tensors, which share memory with the originals.

    Example:
        >>> import torch
        >>> from metaforge.authoring import detach_params
        >>> detach_params({"weight": torch.ones(2, requires_grad=True)})
        {'weight': tensor([1., 1.])}
    """
    return {name: value.detach() for name, value in params.items()}


def add_params(params: Params, updates: Params) -> Params:
    """Add two dictionaries of tensors name by name.

    Args:
        params: Tensors by name.
        updates: Tensors to add.

    Returns:
        A new dictionary with the names of both. A name that only one of them has keeps its tensor.

    Example:
        >>> import torch
        >>> from metaforge.authoring import add_params
        >>> add_params({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, {"b": torch.tensor(0.5)})
        {'a': tensor(1.), 'b': tensor(2.5000)}
    """
    total = dict(params)
    for name, value in updates.items():
        total[name] = total[name] + value if name in total else value
    return total


def advance_state(values: Params, changes: Params) -> Params:
    """Return the state entries that `changes` changes, after the changes are added.

    Within a task, a later forward pass must see the state that an earlier one has changed:
    `values | advance_state(values, changes)`.

    Args:
        values: A learner's values.
        changes: Tensors to add to entries of `values`, by name.

    Returns:
        The changed entries only.

    Raises:
        KeyError: `values` has no entry of a name in `changes`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import advance_state
        >>> values = {"weight": torch.tensor(1.0), "state.count": torch.tensor(3.0)}
        >>> advance_state(values, {"state.count": torch.tensor(1.0)})
        {'state.count': tensor(4.)}
    """
    return {name: values[name] + change for name, change in changes.items()}


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape.

    The built-in `sum` starts from the integer 0, so for type checkers its result may be an `int`.

    Args:
        terms: At least one tensor.

    Returns:
        Their sum.

    Raises:
        ValueError: `terms` is empty.

    Example:
        >>> import torch
        >>> from metaforge.authoring import sum_of
        >>> sum_of([torch.tensor(1.0), torch.tensor(2.0)])
        tensor(3.)
    """
    first, *rest = terms
    return sum(rest, first)


def one_task(tasks: Task, index: int = 0) -> Task:
    """Return one task of a batch.

    Args:
        tasks: A batch of tasks; every tensor has shape `[tasks, ...]`.
        index: Position of the task in the batch.

    Returns:
        The task; its tensors have shape `[...]`.

    Example:
        >>> import torch
        >>> from metaforge import one_task
        >>> from metaforge.authoring import Examples, Task
        >>> examples = Examples(torch.zeros(8, 5, 3), torch.zeros(8, 5, dtype=torch.int64))
        >>> one_task(Task(examples, examples), index=2).support.x.shape
        torch.Size([5, 3])
    """
    support, query = (Examples(part.x[index], part.y[index]) for part in (tasks.support, tasks.query))
    return Task(support, query, tasks.classes[index] if isinstance(tasks.classes, Tensor) else ())


def gradient(
    function: Callable[[Params], tuple[Tensor, Any]], at: Params, *, differentiable: bool
) -> tuple[Params, Any]:
    """Return the gradient of a scalar function at a point, and the function's auxiliary output.

    Args:
        function: Maps parameters to a scalar and an auxiliary output, a pytree of tensors.
        at: Parameters at which the gradient is taken.
        differentiable: Whether the gradient can be differentiated again, as a second-order meta-gradient needs.
            Otherwise the gradient is detached and its graph is freed, which saves memory.

    Returns:
        The gradient by name, each tensor of its parameter's shape; and the auxiliary output.

    Example:
        >>> import torch
        >>> from metaforge.authoring import gradient
        >>> def loss(params):
        ...     return params["w"].square().sum(), {"largest": params["w"].max()}
        >>> gradient(loss, {"w": torch.tensor([1.0, 2.0])}, differentiable=False)
        ({'w': tensor([2., 4.])}, {'largest': tensor(2.)})
    """
    if differentiable:
        result: tuple[Params, Any] = grad(function, has_aux=True)(at)
        return result
    with torch.no_grad():
        # torch's type stub describes only the pair that `vjp` returns without `has_aux`.
        value, pull_back, aux = vjp(function, at, has_aux=True)  # type: ignore[misc]
        grads: Params = pull_back(torch.ones_like(value), retain_graph=False, create_graph=False)[0]
        return detach_params(grads), aux
