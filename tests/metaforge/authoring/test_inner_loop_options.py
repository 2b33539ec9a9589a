"""The options that learners with an inner loop share."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from metaforge.authoring.inner_loop_options import InnerLoopOptions


def test_options_are_checked() -> None:
    for wrong in ({"steps": -1}, {"norm": "none"}, {"stepz": 1}, {"solver_rate": 0}):
        with pytest.raises(ValidationError):
            InnerLoopOptions.model_validate(wrong)


def test_no_patterns_adapt_nothing_and_are_refused() -> None:
    assert InnerLoopOptions(adapt=["*.bias"]).adapt == ["*.bias"]
    with pytest.raises(ValidationError, match="at least 1 item"):
        InnerLoopOptions(adapt=[])


def test_the_option_recompute_of_older_runs_is_the_adjoint() -> None:
    again = InnerLoopOptions.model_validate({"recompute": True, "steps": 2})
    assert (again.adjoint, again.steps) == ("recompute", 2)
    assert InnerLoopOptions.model_validate({"recompute": False}) == InnerLoopOptions()
    with pytest.raises(ValidationError):
        InnerLoopOptions.model_validate({"recompute": "yes"})
