"""SGD as outer optimiser: the steps of torch's SGD, plain, with momentum and after Nesterov."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge_plugins.optimizers.sgd import SGD
from outer_toys import START, TARGET, minimised, minimised_by_torch


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.7, "nesterov": True}])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_is_the_sgd_of_torch(options: dict[str, Any], decay: float) -> None:
    expected = minimised_by_torch(lambda params: torch.optim.SGD(params, lr=0.05, weight_decay=decay, **options))
    torch.testing.assert_close(minimised(SGD, decay, **options), expected)


def test_two_steps_of_momentum_and_nesterov_by_hand() -> None:
    # g1 = w - t, v1 = g1; plain: w -= lr v; Nesterov: w -= lr (g + m v).
    first = START - 0.05 * (START - TARGET)
    velocity = 0.9 * (START - TARGET) + (first - TARGET)
    torch.testing.assert_close(minimised(SGD, 0.0, 2, momentum=0.9), first - 0.05 * velocity)
    first = START - 0.05 * 1.9 * (START - TARGET)
    velocity = 0.9 * (START - TARGET) + (first - TARGET)
    second = first - 0.05 * ((first - TARGET) + 0.9 * velocity)
    torch.testing.assert_close(minimised(SGD, 0.0, 2, momentum=0.9, nesterov=True), second)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov needs a momentum larger than 0"):
        SGD.Config(nesterov=True)
