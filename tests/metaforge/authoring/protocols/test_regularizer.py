"""The protocol of regularizers: by default every method does nothing."""

from __future__ import annotations

import torch
from torch import nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.model import Model
from metaforge.authoring.protocols import Options, Pass, Regularizer
from toys import smooth, tasks


class Idle(Regularizer):
    """Does nothing."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config


def test_every_default_does_nothing() -> None:
    idle, module, output = Idle(Options()), nn.Tanh(), torch.ones(2)
    assert not idle.needs_inner_loop()
    assert idle.init({"0": module}, make_key(0)) == {}
    assert not idle.taps("0", module)
    assert idle.tap({}, "0", module, torch.zeros(2), output, Pass()) is output
    assert idle.draws(None) == idle.draws(make_key(0)) == 1
    assert idle.penalty({"w": torch.ones(2)}) is None
    assert idle.combine(torch.ones(3), {}) is None


def test_a_model_with_an_idle_regularizer_has_the_values_and_outputs_of_one_without() -> None:
    plain, regularized = Model(smooth("batch")), Model(smooth("batch"), regularizers={"idle": Idle(Options())})
    values = plain.init(make_key(0))
    assert values.keys() == regularized.init(make_key(0)).keys()
    x = tasks(1).support.x[0].float()
    assert torch.equal(plain(values, x), regularized(values, x))
