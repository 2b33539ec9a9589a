"""ResNet-12: its sizes, its blocks by hand, DropBlock, and every plan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backbone_plans import assert_equal_plans, assert_he_normal, inputs, size, spec_of
from metaforge.authoring import Model, Pass, make_key, seeded
from metaforge.errors import ConfigError
from metaforge_plugins.backbones.resnet12 import Block, DropBlock, ResNet12, ResNet12Options

TINY = (3, 4, 5, 6)


def counted(channels: int, *widths: int) -> int:
    """Return the number of weights: of three 3×3 convolutions, a 1×1 convolution and four batch norms per block."""
    total, before = 0, channels
    for width in widths:
        total += 9 * width * (before + 2 * width) + before * width + 4 * 2 * width
        before = width
    return total


@pytest.mark.parametrize(
    ("widths", "expected"), [((64, 160, 320, 640), 12_424_320), ((64, 128, 256, 512), 7_996_800), (TINY, None)]
)
def test_parameter_counts(widths: tuple[int, int, int, int], expected: int | None) -> None:
    network = ResNet12(ResNet12Options(widths=widths)).build(spec_of(3, 84, 84))
    assert size(network) == counted(3, *widths)
    assert expected in (None, size(network))


@pytest.mark.parametrize(
    ("x_shape", "readout", "features"),
    [((3, 84, 84), "mean", 6), ((3, 84, 84), "flatten", 150), ((1, 28, 20), "flatten", 6), ((2, 16, 16), "mean", 6)],
)
def test_features(x_shape: tuple[int, ...], readout: str, features: int) -> None:
    network = ResNet12(ResNet12Options(widths=TINY, readout=readout)).build(spec_of(*x_shape))
    assert network(torch.zeros(2, *x_shape)).shape == (2, features)


@pytest.mark.parametrize(("x_shape", "said"), [((6,), r"channels, height, width.*\[6\]"), ((1, 15, 28), "15 × 28")])
def test_other_inputs_are_refused(x_shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ResNet12(ResNet12Options()).build(spec_of(*x_shape))


def test_a_block_is_that_of_the_paper() -> None:
    with seeded(make_key(0)):
        block = Block(2, 3, nn.Identity()).double()
    x = inputs(4, 2, 8, 8)
    convolutions = [module for module in block.layers if isinstance(module, nn.Conv2d)]
    out = x
    for number, layer in enumerate(convolutions):
        out = normalised(functional.conv2d(out, layer.weight, padding=1))
        out = functional.leaky_relu(out, 0.1) if number < 2 else out
    out = out + normalised(functional.conv2d(x, block.shortcut[0].weight))
    expected = functional.max_pool2d(functional.leaky_relu(out, 0.1), 2)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def normalised(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True)


def test_initial_values_are_normal_by_the_number_of_outputs() -> None:
    with seeded(make_key(0)):
        assert_he_normal(ResNet12(ResNet12Options(widths=(16, 32, 64, 128))).build(spec_of(3, 32, 32)))


def test_drop_block_zeroes_patches_and_keeps_the_mean_of_the_mask() -> None:
    layer, ones = DropBlock(0.2), torch.ones(8, 16, 12, 10, dtype=torch.float64)
    with seeded(make_key(0)):
        out = layer(ones)
    assert layer.eval()(ones) is ones
    assert float(out.mean()) == pytest.approx(1, abs=1e-12)
    zeroed = (out == 0).double()
    # Equation 1 chooses the rate of patches so that about this share of the entries is zero; patches overlap.
    assert 0.14 < float(zeroed.mean()) < 0.2
    # Each zero lies in a patch of 5 × 5 zeros: opening the mask with the patch leaves it as it is.
    eroded = -functional.max_pool2d(-zeroed, 5, stride=1)
    opened = functional.max_pool2d(functional.pad(eroded, [4] * 4), 5, stride=1)
    assert torch.equal(opened, zeroed)


def test_dropout_depends_on_the_key_of_the_pass_alone() -> None:
    spec = spec_of(1, 24, 24)
    model = Model(lambda: ResNet12(ResNet12Options(widths=TINY, dropout=0.3)).build(spec))
    values, x = model.init(make_key(0)), torch.rand(3, 1, 24, 24)
    first, again, other = (model(values, x, Pass(make_key(n), 0, "support")) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(model(values, x), model(values, x))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_plan_is_equal(dropout: float) -> None:
    assert_equal_plans(ResNet12(ResNet12Options(widths=TINY, dropout=dropout)), 1, 16, 16)
