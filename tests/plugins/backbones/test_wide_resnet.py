"""Wide ResNet: its sizes, a forward pass by hand, and every plan."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from backbone_plans import assert_equal_plans, assert_he_normal, inputs, size, spec_of
from metaforge.authoring import make_key, seeded
from metaforge.errors import ConfigError
from metaforge_plugins.backbones.wide_resnet import WideResNet, WideResNetOptions


def network(channels: int = 3, side: int = 32, **options: object) -> nn.Module:
    return WideResNet(WideResNetOptions.model_validate(options)).build(spec_of(channels, side, side))


# Those of the authors' networks for ten classes, without the linear layer of 640 k · 10 + 10 weights.
@pytest.mark.parametrize(
    ("depth", "width", "expected"), [(28, 10, 36_479_194 - 6410), (40, 4, 8_949_210 - 2570), (16, 8, 10_961_370 - 5130)]
)
def test_parameter_counts(depth: int, width: int, expected: int) -> None:
    assert size(network(depth=depth, width=width)) == expected


@pytest.mark.parametrize("depth", [9, 12, 27, 29])
def test_depths_without_whole_blocks_are_refused(depth: int) -> None:
    with pytest.raises(ValidationError):
        WideResNetOptions(depth=depth)


def test_it_computes_what_the_paper_says() -> None:
    with seeded(make_key(0)):
        made = network(channels=1, side=12, depth=10, width=2).double()
    weights = [module.weight for module in made.modules() if isinstance(module, nn.Conv2d)]
    x = inputs(3, 1, 12, 12)
    # In the order of the modules: the stem, then the two convolutions and the shortcut of each stage's only block.
    out = functional.conv2d(x, weights[0], padding=1)
    for stage in range(3):
        first, second, shortcut = weights[1 + 3 * stage : 4 + 3 * stage]
        stride = 1 if stage == 0 else 2
        active = activated(out)
        inner = activated(functional.conv2d(active, first, stride=stride, padding=1))
        out = functional.conv2d(inner, second, padding=1) + functional.conv2d(active, shortcut, stride=stride)
    torch.testing.assert_close(made(x), activated(out).mean((2, 3)), rtol=1e-12, atol=1e-12)


def activated(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True).relu()


def test_blocks_of_one_shape_add_their_input_unchanged() -> None:
    made = network(channels=1, side=8, depth=16, width=1)
    shortcuts = [module.shortcut is not None for module in made if hasattr(module, "shortcut")]
    # The first stage of width 1 has the 16 filters of the stem.
    assert shortcuts == [False, False, True, False, True, False]


def test_initial_values_are_normal_by_the_number_of_outputs() -> None:
    with seeded(make_key(0)):
        assert_he_normal(network(depth=10, width=4))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_plan_is_equal(dropout: float) -> None:
    assert_equal_plans(WideResNet(WideResNetOptions(depth=10, width=1, dropout=dropout)), 1, 8, 8)


def test_features_of_any_images() -> None:
    assert network(channels=2, side=28, depth=10, width=1)(torch.zeros(2, 2, 28, 20)).shape == (2, 64)
    with pytest.raises(ConfigError, match=r"\[channels, height, width\].*\[6\]"):
        WideResNet(WideResNetOptions()).build(spec_of(6))
