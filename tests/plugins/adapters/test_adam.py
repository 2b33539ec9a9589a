"""Adam: equal to torch's within a task, its second moment carried from task to task."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from metaforge.authoring.descent import Chain, descend
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Params
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from toys import THETA, A, assert_true_gradient, inner_step, quadratic


def adapted(adam: Adam, values: Params, steps: int) -> tuple[Params, Params]:
    """Return what `steps` steps on the quadratic reach, and the change of state."""
    objective = lambda moved, step: (quadratic(moved["w"], A) + moved["w"].sin().sum(), {})  # noqa: E731
    return descend(objective, values, {"w": values["w"]}, Chain({"adam": adam}), steps)


def start(adam: Adam) -> Params:
    """Return θ and the adapter's first values."""
    return {"w": THETA} | {
        f"state.adapters.adam.{name.removeprefix('state.')}": value for name, value in adam.init({"w": THETA}).items()
    }


def torch_adam(parameter: torch.Tensor, **options: float) -> torch.optim.Adam:
    """Return torch's optimiser of one tensor."""
    return torch.optim.Adam([parameter], lr=0.05, betas=(options["beta1"], options["beta2"]), eps=options["eps"])


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_one_task_equals_torch(beta1: float, carry: bool) -> None:
    options = {"beta1": beta1, "beta2": 0.99, "eps": 1e-8}
    parameter = torch.nn.Parameter(THETA.clone())
    theirs = torch_adam(parameter, **options)
    for _ in range(5):
        theirs.zero_grad()
        (quadratic(parameter, A) + parameter.sin().sum()).backward()
        theirs.step()
    adam = Adam(AdamOptions(lr=0.05, carry=carry, **options))
    fast, _ = adapted(adam, start(adam), 5)
    torch.testing.assert_close(fast["w"], parameter.detach(), rtol=1e-9, atol=1e-12)


def test_the_second_moment_is_carried_and_the_weights_are_reset() -> None:
    options = {"beta1": 0.0, "beta2": 0.99, "eps": 1e-8}
    parameter = torch.nn.Parameter(THETA.clone())
    theirs = torch_adam(parameter, **options)
    adam = Adam(AdamOptions(lr=0.05, **options))
    values = start(adam)
    for _ in range(3):
        with torch.no_grad():
            parameter.copy_(THETA)
        for _ in range(2):
            theirs.zero_grad()
            (quadratic(parameter, A) + parameter.sin().sum()).backward()
            theirs.step()
        fast, change = adapted(adam, values, 2)
        torch.testing.assert_close(fast["w"], parameter.detach(), rtol=1e-9, atol=1e-12)
        values = values | {name: values[name] + delta for name, delta in change.items()}
    assert float(values["state.adapters.adam.count"]) == 6


def test_a_fresh_state_moves_every_weight_by_its_rate() -> None:
    adam = Adam(AdamOptions(lr=0.05, carry=False, eps=1e-12))
    assert adam.init({"w": THETA}) == {}
    fast, change = adapted(adam, start(adam), 1)
    torch.testing.assert_close((fast["w"] - THETA).abs(), torch.full((2,), 0.05, dtype=torch.float64))
    assert change == {}


def test_it_is_differentiable_and_vectorises() -> None:
    adam = Adam(AdamOptions(lr=0.05, carry=False, beta1=0.5))
    assert_true_gradient(lambda values: adapted(adam, values, 3)[0]["w"].square().sum(), {"w": THETA})
    batch = torch.stack([THETA, -THETA, 3 * THETA])
    together = vmap(lambda w: adapted(adam, {"w": w}, 3)[0]["w"])(batch)
    torch.testing.assert_close(together, torch.stack([adapted(adam, {"w": w}, 3)[0]["w"] for w in batch]))


def test_a_zero_gradient_gives_no_step_and_no_infinite_derivative() -> None:
    adam = Adam(AdamOptions())
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    meta = adam.init(params, make_key(0))

    def moved(w: torch.Tensor) -> torch.Tensor:
        gradients = {"w": w**3}
        return adam.update(meta, gradients, adam.start(meta, params), params, inner_step())[0]["w"].sum()

    assert not moved(params["w"]).any()
    assert torch.func.grad(moved)(params["w"]).isfinite().all()
