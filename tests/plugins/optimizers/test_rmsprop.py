"""RMSprop as outer optimiser: the steps of torch's RMSprop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.optimizers.rmsprop import RMSprop
from outer_toys import minimised, minimised_by_torch


@pytest.mark.parametrize("options", [{}, {"alpha": 0.9, "eps": 1e-3}, {"momentum": 0.5, "centered": True}])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_is_the_rmsprop_of_torch(options: dict[str, Any], decay: float) -> None:
    expected = minimised_by_torch(lambda params: torch.optim.RMSprop(params, lr=0.05, weight_decay=decay, **options))
    torch.testing.assert_close(minimised(RMSprop, decay, **options), expected)
