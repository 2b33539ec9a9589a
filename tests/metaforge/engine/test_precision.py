"""The context managers round products, and compute attention of primitive operations, under every plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from engine_toys import image_learner, images, pooling
from metaforge.authoring.kinds import CLASSIFICATION
from metaforge.engine.batch import score_tasks
from metaforge.engine.precision import primitive_attention, rounding
from metaforge_plugins.learners.gradient.maml import MAML
from toys import assert_equal_steps, fresh, learner, step, tasks


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_bfloat16_rounds_products_under_every_plan(plan: str) -> None:
    built = image_learner(pooling)
    values = {name: value.float() for name, value in fresh(built).items()}
    batch = tree_map(lambda t: t.float() if t.is_floating_point() else t, images(3))
    exact = step(built, values, batch, plan)
    with rounding(torch.device("cpu"), "bfloat16", tf32=False):
        rounded = step(built, values, batch, plan)
    assert not torch.equal(rounded.losses, exact.losses)
    torch.testing.assert_close(rounded.losses, exact.losses, rtol=0.1, atol=0.1)


def test_attention_has_the_same_gradients_under_every_plan() -> None:
    def backbone() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), nn.TransformerEncoderLayer(4, 2, 6, 0.0))

    built = learner(MAML, backbone=backbone, steps=2, adapt="all")
    values, batch = fresh(built), tasks(2)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=1), looped)
    one, two = (score_tasks(built, values, batch, kind=CLASSIFICATION, plan=plan) for plan in ("loop", "vmap"))  # type: ignore[arg-type]
    torch.testing.assert_close(two.predictions, one.predictions, rtol=1e-9, atol=1e-9)
    assert torch.backends.mha.get_fastpath_enabled()


def fail_inside() -> None:
    with rounding(torch.device("cpu"), "bfloat16", tf32=True), primitive_attention():
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.is_autocast_enabled("cpu")
        assert not torch.backends.mha.get_fastpath_enabled()
        raise KeyError


def test_settings_are_restored_also_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError):
        fail_inside()
    assert torch.get_float32_matmul_precision() == before
    assert not torch.is_autocast_enabled("cpu")
    assert torch.backends.mha.get_fastpath_enabled()
