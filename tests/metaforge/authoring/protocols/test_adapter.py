"""The protocols of gradient transforms and adapters: `update` is enough, the other methods have default versions."""

from __future__ import annotations

import torch

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Adapter, GradientTransform, InnerStep, Options, Params
from toys import inner_step


class Descent(Adapter):
    """Gradient descent with the learning rate 0.5."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        return {name: 0.5 * grad for name, grad in grads.items()}, state


def test_an_adapter_is_a_gradient_transform() -> None:
    assert GradientTransform in Adapter.__mro__


def test_an_adapter_without_parameters_and_state_needs_update_alone() -> None:
    adapter, params = Descent(Options()), {"w": torch.tensor(2.0)}
    meta = adapter.init(params, make_key(0))
    state = adapter.start(meta, params)
    updates, state = adapter.update(meta, {"w": torch.tensor(1.0)}, state, params, inner_step())
    assert updates == {"w": torch.tensor(0.5)}
    assert meta == state == adapter.carry(meta, state) == {}
