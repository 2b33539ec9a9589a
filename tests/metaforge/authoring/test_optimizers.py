"""What optimiser plugins share."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from metaforge.authoring import MomentOptions, fused


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([torch.zeros(2), torch.zeros(1, dtype=torch.float64)], True),
        ([torch.zeros(2), torch.zeros(2, device="meta")], None),
        ([torch.zeros(2), torch.zeros(1, dtype=torch.int64)], None),
    ],
)
def test_parameters_on_the_cpu_are_updated_by_one_fused_call(params: list[torch.Tensor], expected: bool | None) -> None:
    assert fused([{"params": params[:1]}, {"params": params[1:]}]) is expected


@pytest.mark.parametrize("betas", [(1.0, 0.9), (-0.1, 0.9), (0.9,), (0.9, 0.9, 0.9)])
def test_betas_are_two_decays_below_one(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        MomentOptions.model_validate({"betas": betas})
