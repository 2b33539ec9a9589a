"""How far from exact an implicit meta-gradient is: its two residuals, and the notes about them."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from metaforge.authoring.descent import Adjoint
from metaforge.authoring.protocols import Params
from metaforge.authoring.residuals import ImplicitNotes, relative_slope, solver_residual
from metaforge.errors import ConfigError
from toys import THETA, A, H, quadratic

V = torch.tensor([1.0, 0.5], dtype=torch.float64)


def objective(values: Params, step: int) -> tuple[Tensor, Params]:
    """Return the support loss of fixture F1."""
    return quadratic(values["w"], A), {}


def test_the_slope_is_relative_to_that_at_the_start() -> None:
    start, half = {"w": THETA}, {"w": (THETA + A) / 2}
    assert float(relative_slope(objective, start, start, start, 0)) == 1
    assert float(relative_slope(objective, start, start, half, 0)) == pytest.approx(0.5)
    assert float(relative_slope(objective, start, {"w": A}, {"w": A}, 0)) == 0


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("proximal", [0.0, 2.0])
def test_the_residual_of_the_solver_is_that_of_the_linear_system(steps: int, proximal: float) -> None:
    start = {"w": THETA}
    adjoint = Adjoint("implicit", solver_steps=steps)
    found = solver_residual(objective, start, start, start, 0, adjoint=adjoint, query_grads={"w": V}, proximal=proximal)
    # One step of conjugate gradients goes along v to the point where the residual is orthogonal to v.
    matrix = H + proximal * torch.eye(2, dtype=torch.float64)
    first = (matrix @ V * (V @ V / (V @ matrix @ V)) - V).norm() / V.norm()
    torch.testing.assert_close(found, first if steps == 1 else torch.zeros_like(first), rtol=1e-9, atol=1e-12)
    assert not found.requires_grad


def test_a_series_that_diverges_leaves_more_than_no_solution() -> None:
    start = {"w": THETA}
    residuals = [
        float(
            solver_residual(
                objective,
                start,
                start,
                start,
                0,
                adjoint=Adjoint("implicit", "neumann", 20, rate),
                query_grads={"w": V},
            )
        )
        for rate in (0.3, 1.0)
    ]
    assert residuals[0] < 0.05
    assert residuals[1] > 1e6


@pytest.mark.parametrize(
    ("solver", "metrics", "words"),
    [
        ("cg", {"inner_residual": 0.5}, "has not converged (outer step 3: the gradient of its loss fell to 50% only)"),
        ("cg", {"inner_residual": float("nan")}, "has not converged"),
        (
            "cg",
            {"inner_residual": 0.0, "solver_residual": 0.09},
            "(outer step 3: relative residual 0.09)",
        ),
        ("cg", {"inner_residual": 0.0, "solver_residual": 7.0}, "take more learner.solver_steps"),
        ("neumann", {"inner_residual": 0.0, "solver_residual": 0.9}, "is not solved"),
        (
            "neumann",
            {"inner_residual": 0.0, "solver_residual": 3e5},
            "Neumann series of the implicit meta-gradient",
        ),
        ("neumann", {"inner_residual": 0.0, "solver_residual": float("inf")}, "set learner.solver_rate below"),
    ],
)
def test_each_cause_is_named_once(
    solver: Literal["cg", "neumann"], metrics: dict[str, float], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = ImplicitNotes(solver)
    for step in (3, 4):
        notes.after_step(step, metrics)
    text = capsys.readouterr().err
    assert words in text
    assert text.count("Note: ") == 1


def test_what_is_exact_enough_has_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    ImplicitNotes("neumann", "Mine").after_step(1, {"inner_residual": 0.09, "solver_residual": 0.049})
    ImplicitNotes("cg").after_step(1, {"loss": 1.0})
    assert capsys.readouterr().err == ""


def test_a_learner_that_does_not_say_how_exact_it_is_can_be_refused() -> None:
    with pytest.raises(ConfigError, match="The loss of Mine has no metric inner_residual") as caught:
        ImplicitNotes("cg", "Mine").after_step(1, {"loss": 1.0})
    assert "`query_loss`" in caught.value.remedy
