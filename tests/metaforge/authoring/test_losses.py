"""Losses and scores of one task: they equal torch's own and work under nested transforms and in low precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from metaforge.authoring.losses import (
    accuracy,
    accuracy_by_instance,
    at_least_float32,
    binary_cross_entropy,
    cross_entropy,
    entropy,
    label_accuracy,
    mean_squared_error,
    one_hot,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_equal_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(6, 4, generator=generator, dtype=dtype), torch.tensor([0, 3, 1, 1, 2, 0])
    assert torch.equal(one_hot(y, 4, dtype), F.one_hot(y, 4).to(dtype))
    torch.testing.assert_close(cross_entropy(logits, y), F.cross_entropy(logits, y))
    torch.testing.assert_close(mean_squared_error(logits, -logits), F.mse_loss(logits, -logits))
    labels = torch.randint(2, (6, 4), generator=generator).to(dtype)
    expected = F.binary_cross_entropy_with_logits(30 * logits, labels)
    torch.testing.assert_close(binary_cross_entropy(30 * logits, labels), expected)


def test_accuracies_count_what_is_right() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0], [-1.0, -2.0]])
    assert accuracy(logits, torch.tensor([0, 0, 0])) == pytest.approx(2 / 3)
    # A logit of zero does not predict the label.
    assert label_accuracy(torch.tensor([[2.0, -1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0, 1.0]])) == 0.5


def test_accuracy_by_instance() -> None:
    y, right = torch.tensor([0, 1, 0, 1, 1, 0]), torch.tensor([1, 0, 1, 1, 0, 0])
    logits = one_hot(torch.where(right == 1, y, 1 - y), 2)
    found = {name: float(value) for name, value in accuracy_by_instance(logits, y).items()}
    assert found == {"instance_1": 0.5, "instance_2": 1.0, "instance_3": 0.0}
    batched = vmap(accuracy_by_instance)(torch.stack([logits, 1 - logits]), torch.stack([y, y]))
    assert {name: value.tolist() for name, value in batched.items()} == {
        "instance_1": [0.5, 0.5],
        "instance_2": [1.0, 0.0],
        "instance_3": [0.0, 1.0],
    }


@pytest.mark.parametrize("logit", [0.0, 1e-9, -3.0, 40.0, -90.0, 800.0])
def test_binary_cross_entropy_has_the_derivatives_of_the_sigmoid_everywhere(logit: float) -> None:
    z = torch.tensor([[logit]], dtype=torch.float64)
    sigmoid = z.sigmoid()
    for y in (0.0, 1.0):
        loss = partial(binary_cross_entropy, y=torch.full_like(z, y))
        torch.testing.assert_close(grad(loss)(z), sigmoid - y, rtol=1e-6, atol=1e-8)
        second = grad(lambda x, loss=loss: grad(loss)(x).sum())(z)
        torch.testing.assert_close(second, sigmoid * (1 - sigmoid), rtol=1e-6, atol=1e-8)


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
    labels = (logits.flip(0) > 0).bfloat16()
    for target, functions in (
        (y, (cross_entropy, accuracy)),
        (logits.flip(0), (mean_squared_error,)),
        (labels, (binary_cross_entropy, label_accuracy)),
    ):
        for function in functions:
            result = function(logits, target)
            assert result.dtype == torch.float32
            wide = target.float() if target.is_floating_point() else target
            assert torch.equal(result, function(logits.float(), wide))


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
