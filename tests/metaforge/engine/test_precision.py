"""The context managers round products, and compute attention of primitive operations, under every plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from engine_toys import image_learner, images, pooling
from metaforge.authoring.kinds import CLASSIFICATION
from metaforge.authoring.protocols import Key, Params
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


def tf32_settings() -> list[str]:
    backends = torch.backends
    operators = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return [operator.fp32_precision for operator in operators]


@pytest.fixture
def default_settings() -> Iterator[None]:
    """Restore PyTorch's own defaults after a test."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for operator in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        operator.fp32_precision = "none"


@pytest.mark.usefixtures("default_settings")
@pytest.mark.parametrize("own", ["defaults", "older interface", "newer interface"])
@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_allowed_or_forbidden_for_products_and_convolutions(allowed: bool, own: str) -> None:
    if own == "older interface":
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = False
    elif own == "newer interface":
        # PyTorch now refuses to tell `cudnn.allow_tf32`.
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = tf32_settings()
    with rounding(torch.device("cpu"), "float32", tf32=allowed):
        assert tf32_settings() == ["tf32" if allowed else "ieee"] * 4
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert tf32_settings() == before


@pytest.mark.usefixtures("default_settings")
def test_an_evaluation_rounds_no_products() -> None:
    seen = []

    class Watching(MAML):
        """Notes how products are rounded while it predicts."""

        def predict(self, values: Params, fast: Any, x: Tensor, *, key: Key | None = None) -> Tensor:
            seen.append((tf32_settings(), torch.is_autocast_enabled("cpu")))
            return super().predict(values, fast, x, key=key)

    built = learner(Watching)
    values, batch = fresh(built), tasks(1)
    with rounding(torch.device("cpu"), "bfloat16", tf32=True):
        score_tasks(built, values, batch, kind=CLASSIFICATION)
    assert seen == [(["ieee"] * 4, False)]
