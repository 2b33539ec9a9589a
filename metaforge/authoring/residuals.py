"""How far from exact an implicit meta-gradient is: two residuals of a task, and the notes about them in a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.func import vjp

from metaforge.authoring.descent import UNROLL, Adjoint, Chain, InnerLoop, Objective, solver_of
from metaforge.authoring.functional import detach_params, gradient, sum_of
from metaforge.authoring.protocols import Params
from metaforge.errors import ConfigError
from metaforge.kernels.implicit import relative_residual
from metaforge.system.streams import note_stream

# The largest slope at the end of an inner loop, relative to that at its start, that counts as a minimum.
LARGEST_RESIDUAL = 0.1
# The largest residual of the linear system, relative to its right-hand side, that counts as solved. The relative error
# of the meta-gradient was measured to be 1 to 3 times as large.
LARGEST_SOLVER_RESIDUAL = 0.05


def relative_slope(
    objective: Objective,
    values: Params,
    start: Params,
    fast: Params,
    step: int,
    *inputs: Tensor,
    proximal: float = 0.0,
) -> Tensor:
    """Return the norm of the objective's gradient at the end of an inner loop, divided by the norm at its start.

    The implicit adjoint is exact where it is zero.

    Args:
        objective: The objective of `descend`, as the other arguments are.
        values: All values that the objective reads.
        start: The parameters at the start of the loop.
        fast: The adapted parameters; other entries are left out.
        step: The number of the inner step that the objective gets.
        *inputs: Tensors that are passed to the objective.
        proximal: The factor of the proximal term.

    Returns:
        A scalar without a graph; 0 if both gradients are zero.
    """
    loop = InnerLoop(objective, Chain({}), UNROLL, proximal, False)
    values, start, fast = detach_params(values), detach_params(start), detach_params(fast)
    norms = []
    for at in (start, {name: fast[name] for name in start}):
        slope, _ = gradient(lambda p: loop.total(step, p, values, start, *inputs), at, differentiable=False)
        norms.append(sum_of(part.square().sum() for part in slope.values()).sqrt())
    return norms[1] / (norms[0] + (norms[0] == 0))


def solver_residual(
    objective: Objective,
    values: Params,
    start: Params,
    fast: Params,
    step: int,
    *inputs: Tensor,
    adjoint: Adjoint,
    query_grads: Params,
    proximal: float = 0.0,
) -> Tensor:
    """Return ‖A u - v‖ / ‖v‖ for the solution u of the implicit adjoint's linear system: 0 where it is exact.

    A is the Hessian of the objective at the end of an inner loop, and v the gradient of the query loss there.

    Args:
        objective: The objective of `descend`, as the other arguments are.
        values: All values that the objective reads.
        start: The parameters at the start of the loop.
        fast: The adapted parameters; other entries are left out.
        step: The number of the inner step that the objective gets.
        *inputs: Tensors that are passed to the objective.
        adjoint: An implicit adjoint.
        query_grads: The gradient of the query loss with respect to the adapted parameters, by name.
        proximal: The factor of the proximal term.

    Returns:
        A scalar without a graph.
    """
    loop = InnerLoop(objective, Chain({}), UNROLL, proximal, False)
    values, start = detach_params(values), detach_params(start)
    names, v = list(start), [query_grads[name].detach() for name in start]

    def slope(*at: Tensor) -> tuple[Tensor, ...]:
        slopes = loop.slope(step, dict(zip(names, at, strict=True)), values, start, *inputs)
        return tuple(slopes[name] for name in names)

    with torch.no_grad():
        # torch's type stub declares another number of results.
        _, product = vjp(slope, *(fast[name].detach() for name in names))  # type: ignore[misc]
        return relative_residual(solver_of(adjoint), lambda vector: product(tuple(vector)), v).detach()


class ImplicitNotes:
    """Prints a note, once in a run for each cause, where an implicit meta-gradient is not exact.

    Args:
        solver: The solver of the linear system, see `Adjoint`.
        required_of: The name of the learner's class, if its metrics must have `inner_residual`.
    """

    def __init__(self, solver: Literal["cg", "cr", "neumann"], required_of: str = "") -> None:
        self.solver, self.required_of, self.noted = solver, required_of, set[str]()

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at the metrics `inner_residual` and `solver_residual` after an outer step.

        Raises:
            ConfigError: There is no `inner_residual`, although it is required.
        """
        if self.required_of and "inner_residual" not in metrics:
            raise ConfigError(
                f"The loss of {self.required_of} has no metric inner_residual, so nobody would see how far from exact"
                " its implicit meta-gradient is.",
                where="learner.adjoint",
                remedy="use another adjoint; its author can call `query_loss`, or add what the methods"
                " `inner_residual` and `solver_residual` return to the metrics",
            )
        residual, left = metrics.get("inner_residual", 0.0), metrics.get("solver_residual", 0.0)
        # In these comparisons NaN is too large.
        if not residual <= LARGEST_RESIDUAL:
            self._note(
                "inner loop",
                f"the inner loop has not converged (outer step {step}: the gradient of its loss fell to {residual:.0%}"
                " only), so the implicit meta-gradient is not exact: take more inner steps, a larger inner rate, or a"
                " larger learner.proximal.",
            )
        # A series that converges leaves less than 1, which is what a solution of zero leaves.
        if self.solver == "neumann" and not left <= 1:
            self._note(
                "divergence",
                f"the Neumann series of the implicit meta-gradient diverges (outer step {step}: relative residual"
                f" {left:.2g}), so the meta-gradient is wrong: set learner.solver_rate below 2 / largest eigenvalue of"
                " the Hessian, or learner.solver to cg.",
            )
        elif not left <= LARGEST_SOLVER_RESIDUAL:
            self._note(
                "solver",
                f"the linear system of the implicit meta-gradient is not solved (outer step {step}: relative residual"
                f" {left:.2g}), so the meta-gradient is not exact: take more learner.solver_steps, or a larger"
                " learner.proximal.",
            )

    def _note(self, cause: str, text: str) -> None:
        if cause not in self.noted:
            self.noted.add(cause)
            print(f"Note: {text}", file=note_stream())
