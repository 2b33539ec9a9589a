"""AdamW as outer optimiser: the steps of torch's AdamW, with its weight decay of 0.01 by default."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.optimizers.adamw import AdamW
from outer_toys import minimised, minimised_by_torch


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_by_default_it_is_the_adamw_of_torch(options: dict[str, Any]) -> None:
    expected = minimised_by_torch(lambda params: torch.optim.AdamW(params, lr=0.05, **options))
    torch.testing.assert_close(minimised(AdamW, None, **options), expected)
    assert not torch.equal(minimised(AdamW, None, **options), minimised(AdamW, 0.0, **options))


def test_the_setting_of_a_run_replaces_its_weight_decay() -> None:
    torch.testing.assert_close(
        minimised(AdamW, 0.3), minimised_by_torch(lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.3))
    )
