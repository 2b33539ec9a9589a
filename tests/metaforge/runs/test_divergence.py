"""Detection of divergence: non-finite numbers anywhere, and norms far above the running median."""

from __future__ import annotations

import math

import pytest
import torch

from metaforge.engine.batch import MetaStep
from metaforge.errors import DivergedError
from metaforge.runs import divergence


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_found_by_name(bad: float) -> None:
    tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, bad]), "count": torch.tensor(3)}
    assert divergence.nonfinite(tensors) == ["b"]
    assert not math.isfinite(float(divergence.norm_of(tensors)))


def test_integers_and_no_tensors_are_finite() -> None:
    assert divergence.nonfinite({}) == []
    assert divergence.nonfinite({"count": torch.tensor(2**62)}) == []
    assert float(divergence.norm_of({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})) == 5.0


def test_large_numbers_are_finite() -> None:
    assert divergence.nonfinite({"a": torch.full((4,), 1e30), "b": torch.full((4,), 3e38)}) == []


@pytest.mark.parametrize(
    ("norms", "bound", "expected"),
    [
        ([1.0] * 19, 10.0, math.inf),
        ([1.0] * 20, 10.0, 10.0),
        ([1.0] * 10 + [3.0] * 11, 10.0, 30.0),
        ([1e-9] * 50, 10.0, 1e-2),
        ([1.0] * 50, None, math.inf),
    ],
)
def test_the_limit_follows_the_median(norms: list[float], bound: float | None, expected: float) -> None:
    assert divergence.limit(norms, bound) == pytest.approx(expected)


def test_a_norm_that_overflows_names_the_largest_gradient() -> None:
    grads = {"a": torch.full((10,), 1e18), "b": torch.full((10,), -1e25), "none": torch.zeros(0)}
    norm = float(divergence.norm_of(grads))
    assert math.isinf(norm)
    result = MetaStep(grads, {}, torch.tensor([0.5]), {})
    said = str(divergence.step_error("learner X", result, norm, math.inf, 4, range(6, 8)))
    assert "norm of the meta-gradient overflows" in said
    assert "largest gradient: b" in said


def test_a_run_whose_steps_were_all_skipped_is_an_error() -> None:
    divergence.require_any_step("learner X", 3, [1, 2])
    with pytest.raises(DivergedError, match="all 2 were skipped"):
        divergence.require_any_step("learner X", 2, [1, 2])


def made(loss: float, gradient: float) -> MetaStep:
    losses = torch.tensor([0.5, loss])
    return MetaStep({"model.w": torch.tensor([gradient])}, {}, losses, {})


@pytest.mark.parametrize(
    ("loss", "gradient", "said"),
    [
        (
            math.nan,
            1.0,
            ["no longer finite at outer step 4", r"non-finite loss: \[7\]", "first non-finite gradient: none"],
        ),
        (
            0.5,
            math.inf,
            ["no longer finite at outer step 4", "training episodes 6 to 7", "non-finite gradient: model.w"],
        ),
        (0.5, 1e9, ["explodes to a norm of 1e+09 at outer step 4", "10 is the limit", "largest gradient: model.w"]),
    ],
)
def test_the_report_names_step_episodes_and_parameter(loss: float, gradient: float, said: list[str]) -> None:
    result = made(loss, gradient)
    error = divergence.step_error("learner X", result, abs(gradient), 10.0, 4, range(6, 8))
    for words in said:
        assert words.replace("\\", "") in str(error)
    assert error.exit_code == 6
    assert "the state after step 3 is saved" in error.remedy
