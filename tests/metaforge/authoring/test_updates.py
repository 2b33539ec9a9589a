"""Updates that do not fit the parameters are refused, alone and in a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.func import grad

from metaforge.authoring.descent import Adjoint, Chain, descend
from metaforge.authoring.protocols import GradientTransform, InnerStep, Params
from metaforge.errors import ContractError
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from toys import THETA, A, B, quadratic


class Returning(GradientTransform):
    """Returns what a function of the gradients returns."""

    def __init__(self, function: Callable[[Params], object]) -> None:
        self.function = function

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep) -> Any:
        return self.function(grads)


FAULTY: dict[str, tuple[Callable[[Params], object], str]] = {
    "a smaller shape": (lambda g: ({"w": g["w"].sum()}, {}), "gives 'w' the shape [], not [2]"),
    "a larger shape": (lambda g: ({"w": g["w"].unsqueeze(0)}, {}), "gives 'w' the shape [1, 2], not [2]"),
    "a number": (lambda g: ({"w": 0.1}, {}), "gives 'w' the shape float, not [2]"),
    "a name too few": (lambda g: ({}, {}), "differs from the gradients in the names w"),
    "a name too many": (lambda g: (g | {"v": g["w"]}, {}), "differs from the gradients in the names v"),
    "no dictionary": (lambda g: (None, {}), "gives no updates"),
    "no pair": (lambda g: g, "does not return a pair of updates and state"),
    "no state": (lambda g: (g, None), "does not return a pair of updates and state"),
}


@pytest.mark.parametrize(("function", "sentence"), FAULTY.values(), ids=FAULTY)
@pytest.mark.parametrize("method", ["unroll", "first-order", "recompute"])
@pytest.mark.parametrize("chained", [False, True])
def test_updates_that_do_not_fit_the_parameters_name_their_adapter(
    function: Callable[[Params], object], sentence: str, method: Any, chained: bool
) -> None:
    faulty = Returning(function)
    chain: Any = faulty
    if chained:
        chain = Chain({"before": SGD(SGDOptions(lr=0.5)), "mine": faulty, "after": SGD(SGDOptions(lr=0.5))})

    def adapted_loss(values: Params) -> Tensor:
        def objective(v: Params, step: int) -> tuple[Tensor, Params]:
            return quadratic(v["w"], A), {}

        return quadratic(descend(objective, values, values, chain, 2, adjoint=Adjoint(method))[0]["w"], B)

    with pytest.raises(ContractError) as caught:
        grad(adapted_loss)({"w": THETA})
    label = "the adapter 'mine'" if chained else "Returning"
    assert str(caught.value).startswith(f"the update of {label} {sentence}")
    assert caught.value.owner is faulty
