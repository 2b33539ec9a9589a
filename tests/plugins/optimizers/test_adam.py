"""Adam as outer optimiser: the steps of torch's Adam, and with weight decay those of AdamW."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.optimizers.adam import Adam
from outer_toys import minimised, minimised_by_torch


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_without_weight_decay_it_is_the_adam_of_torch(options: dict[str, Any]) -> None:
    expected = minimised_by_torch(lambda params: torch.optim.Adam(params, lr=0.05, **options))
    torch.testing.assert_close(minimised(Adam, None, **options), expected)
    assert torch.equal(minimised(Adam, None, **options), minimised(Adam, 0.0, **options))


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    torch.testing.assert_close(
        minimised(Adam, 0.3), minimised_by_torch(lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.3))
    )
    coupled = minimised_by_torch(lambda params: torch.optim.Adam(params, lr=0.05, weight_decay=0.3))
    assert not torch.allclose(minimised(Adam, 0.3), coupled, atol=1e-3)
