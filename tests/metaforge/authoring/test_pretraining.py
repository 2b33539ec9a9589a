"""Training without adaptation: one batch, and a classifier of all training classes or a head that all tasks share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring import Examples, Key, Options, Params, Parts, Pass, PretrainingLearner, Task
from pretraining_toys import CLASSES, KEY, NUMBERS, numbered
from toys import spec

INPUTS = spec().x_shape[0]


class Means(PretrainingLearner):
    """Scores a class by the scalar product with the mean of its support examples."""

    Config = Options

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        return {}

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return self.model(values, x, Pass(key))


class WithoutBias(Means):
    """The same, with a linear layer without a bias."""

    bias: ClassVar[bool] = False


def learner(cls: type[Any], kind: str = "classification") -> Any:
    built_for = replace(spec(ways=3), kind=kind, classes=CLASSES)
    return cls(Options(), Parts(built_for, lambda: nn.Linear(INPUTS, 4)), norm="running")


@pytest.mark.parametrize("cls", [Means, WithoutBias])
def test_the_loss_is_that_of_all_training_classes_on_all_examples(cls: type[Any]) -> None:
    one, task = learner(cls), numbered()
    values = {name: value.double() for name, value in one.init(KEY).items()}
    assert values["classifier.weight"].shape == (CLASSES, 4)
    assert ("classifier.bias" in values) is cls.bias
    loss, aux = one.loss(values, task, KEY)
    features = F.linear(torch.cat([task.support.x, task.query.x]), values["model.weight"], values["model.bias"])
    logits = F.linear(features, values["classifier.weight"], values.get("classifier.bias"))
    y = torch.tensor(NUMBERS)[torch.cat([task.support.y, task.query.y])]
    torch.testing.assert_close(loss, F.cross_entropy(logits, y), rtol=1e-12, atol=0)
    assert aux.metrics["score"] == (logits.argmax(-1) == y).double().mean()
    assert one.tags.uses_classes


def test_without_classes_all_tasks_share_the_head() -> None:
    one, task = learner(Means, "regression"), numbered()
    values = {name: value.double() for name, value in one.init(KEY).items()}
    support, query = (Examples(each.x, F.one_hot(each.y, 3).double()) for each in (task.support, task.query))
    loss, _ = one.loss(values, Task(support, query), KEY)
    features = F.linear(torch.cat([support.x, query.x]), values["model.weight"], values["model.bias"])
    prediction = F.linear(features, values["head.weight"], values["head.bias"])
    torch.testing.assert_close(loss, F.mse_loss(prediction, torch.cat([support.y, query.y])), rtol=1e-12, atol=0)
    assert not one.tags.uses_classes


def test_the_linear_layer_is_drawn_as_torch_draws_it() -> None:
    values = learner(Means).init(KEY)
    for name in ("classifier.weight", "classifier.bias"):
        assert values[name].abs().max() <= 0.5
        assert values[name].std() > 0.15
    assert torch.equal(values["classifier.bias"], learner(Means).init(KEY)["classifier.bias"])
