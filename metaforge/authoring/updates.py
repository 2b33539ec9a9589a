"""The update of a gradient transform, refused if it does not fit the parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from metaforge.authoring.protocols import GradientTransform, InnerStep, Params
from metaforge.errors import ContractError


def updated(
    transform: GradientTransform,
    name: str,
    meta: Params,
    grads: Params,
    state: Params,
    params: Params,
    step: InnerStep,
) -> tuple[Params, Params]:
    """Return what the `update` of a transform returns, of which `name` is the name in its chain, if it has one.

    Updates of another shape would be broadcast against the parameters, and the result would be wrong.

    Raises:
        ContractError: It is not a pair of dictionaries, of which the first has the names and shapes of `grads`.
    """
    result = transform.update(meta, grads, state, params, step)
    # In every inner step of a run: comparisons of shapes, which are tuples, and no tensor operation.
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        updates = result[0]
        if isinstance(updates, Mapping) and updates.keys() == grads.keys():
            wrong = [each for each, grad in grads.items() if getattr(updates[each], "shape", None) != grad.shape]
            if not wrong:
                return result
            found = f"gives {wrong[0]!r} the shape {_shape(updates[wrong[0]])}, not {list(grads[wrong[0]].shape)}"
        else:
            names = sorted(map(str, updates.keys() ^ grads.keys())) if isinstance(updates, Mapping) else []
            found = f"differs from the gradients in the names {', '.join(names[:3])}" if names else "gives no updates"
    else:
        found = "does not return a pair of updates and state, both dictionaries of tensors"
    label = f"the adapter {name!r}" if name else type(transform).__name__
    raise ContractError(f"the update of {label} {found}", owner=transform)


def _shape(value: object) -> object:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
