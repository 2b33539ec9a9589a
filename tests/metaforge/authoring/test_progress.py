"""The entries of the training progress are found under every prefix, and nothing else is taken for one."""

from __future__ import annotations

import pytest
import torch

from metaforge.authoring.descent import Chain
from metaforge.authoring.functional import prefixed, select
from metaforge.authoring.keys import make_key
from metaforge.authoring.progress import is_progress, is_share, progress_of, training_progress, with_progress
from metaforge.authoring.protocols import SHARE, STATE, STEP, Adapter, InnerStep, Key, Options, Params, Regularizer
from metaforge_plugins.learners.gradient.maml import MAML
from toys import fresh, inner_step, learner, smooth, task, tasks
from toys import step as outer_step


def test_a_plugin_asks_with_two_scalars_of_zero() -> None:
    assert training_progress() == {STEP: torch.zeros(()), SHARE: torch.zeros(())}
    assert (STEP, SHARE) == ("state.training.step", "state.training.share")


@pytest.mark.parametrize("prefix", ["", "adapters.sgd", "adapters.outer.inner", "regularizers.my-own"])
def test_the_entries_are_set_under_every_prefix(prefix: str) -> None:
    asked = prefixed(prefix, training_progress()) if prefix else training_progress()
    values = {"w": torch.ones(2), "state.mean": torch.ones(3)} | asked
    after = with_progress({name: value.double() for name, value in values.items()}, 7, 0.1)
    assert list(after) == list(values)
    assert [name for name in values if is_share(name)] == [[*asked][1]]
    assert progress_of(after) == {STEP: torch.tensor(7.0), SHARE: torch.tensor(0.1, dtype=torch.float64)}
    assert all(value.dtype == torch.float64 for value in after.values())
    assert torch.equal(after["w"], torch.ones(2))
    assert progress_of(values)[STEP] == 0, "the values passed in are not changed"
    if prefix:
        assert select(after, prefix) == progress_of(after)


@pytest.mark.parametrize(
    "name", ["training.step", "state.training", "state.step", "state.retraining.step", "model.training.share", STATE]
)
def test_other_entries_are_not_taken_for_them(name: str) -> None:
    assert not is_progress(name)
    with pytest.raises(KeyError):
        progress_of({name: torch.ones(())})


class Falling(Adapter):
    """Gradient descent with a rate that falls during the training."""

    Config = Options

    def __init__(self, config: Options) -> None: ...

    def init(self, params: Params, key: Key) -> Params:
        return training_progress()

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        return {name: 0.3 * (1 - meta[SHARE]) * grad for name, grad in grads.items()}, state


class Growing(Regularizer):
    """Weight decay that grows with the number of outer steps."""

    Config = Options

    def __init__(self, config: Options) -> None: ...

    def init(self, modules: object, key: object) -> Params:
        return training_progress()

    def penalty(self, values: Params) -> torch.Tensor:
        return progress_of(values)[STEP] * values["model.0.0.weight"].square().sum()


def test_adapters_of_a_chain_read_their_own_entries() -> None:
    one = learner(MAML, backbone=smooth(), adapters={"first": Falling(Options()), "second": Falling(Options())})
    values = fresh(one)
    assert {name for name in values if is_progress(name)} == {
        f"state.adapters.{name}.training.{entry}" for name in ("first", "second") for entry in ("step", "share")
    }
    start, half, end = (one.adapt(with_progress(values, 5, share), task().support) for share in (0.0, 0.5, 1.0))
    assert all(torch.equal(value, values[name]) for name, value in end.items())
    assert not all(torch.allclose(value, start[name]) for name, value in half.items())
    nested = Chain({"outer": Chain({"inner": Falling(Options())})})
    meta = with_progress(nested.init({}, make_key(0)), 0, 1.0)
    updates, _ = nested.update(meta, {"w": torch.ones(2)}, {}, {}, inner_step())
    assert torch.equal(updates["w"], torch.zeros(2))


def test_the_penalty_of_a_regularizer_reads_them_among_all_values() -> None:
    growing = Growing(Options())
    one = learner(MAML, backbone=smooth(), regularizers={"growing": growing})
    values = fresh(one)
    grads = [
        outer_step(one, with_progress(values, count, 0.0), tasks(2), regularizers=(growing,)).grads["model.0.0.weight"]
        for count in (0, 3)
    ]
    torch.testing.assert_close(grads[1] - grads[0], 6 * values["model.0.0.weight"])
