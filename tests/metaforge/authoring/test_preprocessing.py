"""The features of gradients: both branches, where they meet, and finite derivatives."""

from __future__ import annotations

import math

import torch

from metaforge.authoring.preprocessing import gradient_features


def test_it_is_continuous_and_odd() -> None:
    edge = math.exp(-10)
    below, above = (torch.tensor(edge * factor, dtype=torch.float64) for factor in (1 - 1e-12, 1 + 1e-12))
    for sign in (-1.0, 1.0):
        wanted = torch.tensor([-1.0, sign], dtype=torch.float64)
        torch.testing.assert_close(gradient_features(sign * below, 10.0), wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(gradient_features(sign * above, 10.0), wanted, rtol=0, atol=1e-9)
    x = torch.tensor([0.0, 1e-9, 3e-5, 0.2, 1.0, 50.0], dtype=torch.float64)
    first, second = gradient_features(x, 10.0).unbind(-1)
    torch.testing.assert_close(first, torch.tensor([-1, -1, -1, math.log(0.2) / 10, 0, math.log(50) / 10]).double())
    torch.testing.assert_close(second, torch.tensor([0, 1e-9 / edge, 3e-5 / edge, 1, 1, 1]).double())
    torch.testing.assert_close(gradient_features(-x, 10.0), torch.stack([first, -second], -1))


def test_the_derivative_is_finite_at_zero() -> None:
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(gradient_features(x, 7.0).sum(), x)
    torch.testing.assert_close(found, torch.tensor([math.exp(7.0)], dtype=torch.float64))
