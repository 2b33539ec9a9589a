"""Losses and scores of one task: they equal torch's own and work under nested transforms and in low precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from metaforge.authoring.losses import (
    at_least_float32,
    criterion,
    cross_entropy,
    entropy,
    mean_squared_error,
    one_hot,
    score,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_equal_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(6, 4, generator=generator, dtype=dtype), torch.tensor([0, 3, 1, 1, 2, 0])
    assert torch.equal(one_hot(y, 4, dtype), F.one_hot(y, 4).to(dtype))
    torch.testing.assert_close(cross_entropy(logits, y), F.cross_entropy(logits, y))
    torch.testing.assert_close(mean_squared_error(logits, -logits), F.mse_loss(logits, -logits))
    assert criterion("classification") is cross_entropy
    assert criterion("regression") is mean_squared_error
    assert score("classification", logits, logits.argmax(-1)) == 1
    torch.testing.assert_close(score("regression", logits, -logits), F.mse_loss(logits, -logits))


def test_the_entropy_is_that_of_torch_and_finite_for_certain_predictions() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy().mean())
    certain = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert entropy(certain) == 0
    assert bool(grad(entropy)(certain).isfinite().all())
    assert entropy(logits.bfloat16()).dtype == torch.float32


def test_losses_and_scores_of_bfloat16_predictions_are_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, y = torch.randn(300, 3, generator=generator).bfloat16(), torch.arange(300) % 3
    for kind, target in (("classification", y), ("regression", logits.flip(0))):
        for function in (criterion(kind), partial(score, kind)):  # type: ignore[arg-type]
            result = function(logits, target)
            assert result.dtype == torch.float32
            assert torch.equal(result, function(logits.float(), target.float() if kind == "regression" else target))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_float32_widens_narrow_types_only(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == expected


def test_losses_work_under_nested_transforms() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(3, 6, 4, generator=generator), torch.randint(4, (3, 6), generator=generator)
    batched = vmap(grad(cross_entropy))(logits, y)
    single = [grad(cross_entropy)(task_logits, task_y) for task_logits, task_y in zip(logits, y, strict=True)]
    torch.testing.assert_close(batched, torch.stack(single))
