"""Implicit differentiation: the derivative of the solution of an equation, without a graph of how it was found.

If x solves f(x, z) = 0, then dx/dz = -(df/dx)^-1 df/dz (implicit function theorem). So a vector-Jacobian product with v
is -u^T df/dz, where u solves (df/dx)^T u = v. The solvers here need only products with the matrix. In an inner loop, f
is the gradient of a loss and df/dx its Hessian, which is symmetric: Rajeswaran, Finn, Kakade, Levine 2019,
"Meta-Learning with Implicit Gradients", arXiv 1909.04630, section 3; Lorraine, Vicol, Duvenaud 2020, "Optimizing
Millions of Hyperparameters by Implicit Differentiation", arXiv 1911.02590, for the Neumann series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_flatten, tree_unflatten

from metaforge.kernels.task_axis import apply_function

Vector = Sequence[Tensor]
Product = Callable[[Vector], Vector]
# Maps the product with a symmetric matrix A, and v, to an approximation of A^-1 v.
Solver = Callable[[Product, Vector], Vector]


def implicit_solution(function: Callable[..., Any], solution: Any, solver: Solver, *arguments: Any) -> Any:
    """Return `solution`, differentiable as the solution x of `function(x, *arguments) = 0` that depends on `arguments`.

    It works under `vmap` and `grad` in any order.

    Args:
        function: Maps a solution and the arguments to something of the structure of the solution. Its derivative by the
            solution must be symmetric. It must take every tensor that it uses as an argument; others get no gradient.
        solution: The solution, a nested structure of floating-point tensors.
        solver: Solves the linear system of the backward pass.
        *arguments: Nested dictionaries, tuples and lists of tensors.
    """
    leaves, structure = tree_flatten(solution)
    inputs, input_structure = tree_flatten(arguments)
    count = len(leaves)

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        at = tree_unflatten(list(tensors[:count]), structure)
        return tuple(tree_flatten(function(at, *tree_unflatten(list(tensors[count:]), input_structure)))[0])

    outputs = apply_function(_Implicit, flat, solver, count, *leaves, *inputs)
    return tree_unflatten(list(outputs), structure)


class _Implicit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], solver: Solver, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, ctx.solver, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # `view_as` unwraps tensors left over from a finished functorch level; `vjp` alone would keep the wrapper.
        saved = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        solution, inputs = saved[: ctx.count], saved[ctx.count :]
        floats = [index for index, tensor in enumerate(inputs) if tensor.is_floating_point()]

        def of_inputs(*values: Tensor) -> tuple[Tensor, ...]:
            replaced = list(inputs)
            for index, value in zip(floats, values, strict=True):
                replaced[index] = value
            result: tuple[Tensor, ...] = ctx.function(*solution, *replaced)
            return result

        # torch's type stub declares another number of results of `vjp`, here and below.
        _, hessian_product = vjp(lambda *at: ctx.function(*at, *inputs), *solution)  # type: ignore[misc]
        solved = ctx.solver(lambda vector: hessian_product(tuple(vector)), grads)
        _, pullback = vjp(of_inputs, *(inputs[index] for index in floats))  # type: ignore[misc]
        input_grads: list[Tensor | None] = [None] * len(inputs)
        for index, input_grad in zip(floats, pullback(tuple(solved)), strict=True):
            input_grads[index] = -input_grad
        # The solution itself is a constant: how it depends on the arguments is what the equation says.
        return (None, None, None, *(None for _ in solution), *input_grads)


def conjugate_gradients(steps: int) -> Solver:
    """Return a solver that takes `steps` steps of conjugate gradients; exact after as many as there are unknowns.

    Hestenes, Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems", section 3. Where a direction
    shows that the matrix is not positive definite, the solver keeps the solution of the steps before it, or a multiple
    of v if there is none: Steihaug 1983, "The Conjugate Gradient Method and Trust Regions in Large Scale Optimization".

    Args:
        steps: Number of steps, each of which takes one product.

    Returns:
        A function of the product with a symmetric positive definite matrix A, and of a vector v, that returns an
        approximation of A^-1 v. The product and the solver take and return vectors as sequences of tensors of any
        shapes.

    Example:
        >>> import torch
        >>> from metaforge.authoring import conjugate_gradients
        >>> solve = conjugate_gradients(2)
        >>> solve(lambda vector: [2 * vector[0], 4 * vector[1]], [torch.ones(2), torch.ones(1)])
        [tensor([0.5000, 0.5000]), tensor([0.2500])]
    """

    def solve(product: Product, v: Vector) -> Vector:
        x, residual, direction = [torch.zeros_like(part) for part in v], list(v), list(v)
        squared = _dot(residual, residual)
        # Below this the residual is rounding noise, along which further steps would lead away from the solution.
        least = torch.finfo(squared.dtype).eps ** 2 * squared
        definite = torch.ones_like(squared, dtype=torch.bool)
        for step in range(steps):
            image = product(direction)
            curvature = _dot(direction, image)
            # The first direction is v itself, of which some multiple is better than no solution at all.
            length = torch.where(definite & (squared > least), _ratio(squared, curvature.abs()), 0.0)
            definite = definite & (curvature > 0)
            if step:
                length = torch.where(definite, length, 0.0)
            x = [a + length * b for a, b in zip(x, direction, strict=True)]
            residual = [a - length * b for a, b in zip(residual, image, strict=True)]
            before, squared = squared, _dot(residual, residual)
            factor = _ratio(squared, before)
            direction = [a + factor * b for a, b in zip(residual, direction, strict=True)]
        return x

    return solve


def conjugate_residuals(steps: int) -> Solver:
    """Return a solver that takes `steps` steps of conjugate residuals; exact after as many as there are unknowns.

    Its steps make ‖A x - v‖ as small as possible, so it never grows, also where A is not positive definite. Stiefel
    1955, "Relaxationsmethoden bester Strategie zur Lösung linearer Gleichungssysteme".
    """

    def solve(product: Product, v: Vector) -> Vector:
        x, residual, direction = [torch.zeros_like(part) for part in v], list(v), list(v)
        image = of_residual = product(residual)
        energy = _dot(residual, of_residual)
        # As in conjugate gradients, below this the residual is rounding noise.
        least = torch.finfo(energy.dtype).eps ** 2 * _dot(residual, residual)
        for step in range(steps):
            length = torch.where(_dot(residual, residual) > least, _ratio(energy, _dot(image, image)), 0.0)
            x = [a + length * b for a, b in zip(x, direction, strict=True)]
            if step + 1 == steps:
                break
            residual = [a - length * b for a, b in zip(residual, image, strict=True)]
            of_residual = product(residual)
            before, energy = energy, _dot(residual, of_residual)
            factor = _ratio(energy, before)
            direction = [a + factor * b for a, b in zip(residual, direction, strict=True)]
            image = [a + factor * b for a, b in zip(of_residual, image, strict=True)]
        return x

    return solve


def neumann_series(terms: int, rate: float) -> Solver:
    """Return a solver by the truncated series A^-1 = rate * sum_i (1 - rate A)^i, with i from 0 to `terms`.

    It converges if `rate` is less than 2 divided by the largest eigenvalue of A.
    """

    def solve(product: Product, v: Vector) -> Vector:
        term, total = list(v), list(v)
        for _ in range(terms):
            term = [a - rate * b for a, b in zip(term, product(term), strict=True)]
            total = [a + b for a, b in zip(total, term, strict=True)]
        return [rate * part for part in total]

    return solve


def solver_called(name: Literal["cg", "cr", "neumann"], steps: int, rate: float) -> Solver:
    """Return the solver of a name: conjugate gradients or residuals, or the Neumann series, whose rate is `rate`."""
    if name == "neumann":
        return neumann_series(steps, rate)
    return conjugate_gradients(steps) if name == "cg" else conjugate_residuals(steps)


def relative_residual(solver: Solver, product: Product, v: Vector) -> Tensor:
    """Return ‖A x - v‖ / ‖v‖, where x is what the solver gives for A^-1 v: 0 if it is exact, and for v = 0.

    A solver that gives x = 0 leaves 1, so above 1 the solution is worse than none.
    """
    image = product(solver(product, v))
    rest = [a - b for a, b in zip(image, v, strict=True)]
    return _ratio(_dot(rest, rest), _dot(v, v)).sqrt()


def _dot(first: Vector, second: Vector) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 for 0 / 0: once the residual is zero, the next steps change nothing."""
    return numerator / (denominator + (denominator == 0))
