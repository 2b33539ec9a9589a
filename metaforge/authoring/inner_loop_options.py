"""The options that learners with an inner loop share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from metaforge.authoring.protocols import NormPolicy, Options


class InnerLoopOptions(Options):
    """Options of every learner with an inner loop.

    Example:
        >>> from metaforge.authoring import InnerLoopOptions
        >>> InnerLoopOptions(steps=5).test_steps
        3
    """

    steps: int = Field(1, ge=0, le=1000, description="inner steps in training")
    test_steps: int = Field(3, ge=0, le=1000, description="inner steps in evaluation")
    norm: NormPolicy = Field("transductive", description="which statistics batch norm uses for queries")
    adapt: Literal["weights", "all", "head", "body", "context"] | Annotated[list[str], Field(min_length=1)] = Field(
        "weights",
        description="parameters that the inner loop adapts: all but those of norm layers (weights), all, those of the"
        " linear head, those of the body but not of its norm layers, none but a learner's context, or the names that"
        " match a list of patterns",
    )
    adjoint: Literal["unroll", "recompute", "first-order", "implicit"] = Field(
        "unroll",
        description="how the inner loop is differentiated: through its steps; through its steps, computed again to save"
        " memory; with its gradients as constants; or implicitly, as a minimum of the support loss",
    )
    proximal: float = Field(
        0.0, ge=0, description="factor λ of λ/2 ‖φ - θ‖², which pulls the adapted parameters φ to their start θ"
    )
    solver: Literal["cg", "cr", "neumann"] = Field(
        "cg",
        description="how the implicit adjoint solves its linear system: conjugate gradients, conjugate residuals (which"
        " also suit a Hessian with negative eigenvalues) or Neumann series",
    )
    solver_steps: int = Field(10, ge=1, le=1000, description="Hessian-vector products of the solver")
    solver_residual: bool = Field(
        True,
        description="measure in training how far from exact the solver is; it costs one more solution of the system",
    )
    solver_rate: float = Field(0.1, gt=0, description="rate of the Neumann series, below 2 / largest eigenvalue")

    @model_validator(mode="before")
    @classmethod
    def _rename_recompute(cls, options: Any) -> Any:
        """Accept the option `recompute` of runs that were saved before `adjoint` replaced it."""
        if not isinstance(options, Mapping) or not isinstance(options.get("recompute"), bool):
            return options
        chosen = {"adjoint": "recompute"} if options["recompute"] else {}
        return chosen | {name: value for name, value in options.items() if name != "recompute"}
