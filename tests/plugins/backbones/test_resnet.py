"""ResNet: the numbers of torchvision's, the stem for small images, and every plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbone_plans import assert_equal_plans, assert_he_normal, inputs, size, spec_of
from benchmarks.zoo import import_torchvision
from metaforge.authoring import make_key, seeded
from metaforge.errors import ConfigError
from metaforge_plugins.backbones.resnet import ResNet, ResNetOptions


def network(channels: int = 3, side: int = 32, **options: object) -> nn.Module:
    return ResNet(ResNetOptions.model_validate(options)).build(spec_of(channels, side, side))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [18, 34])
def test_it_computes_what_torchvisions_does(depth: int) -> None:
    theirs = getattr(import_torchvision().models, f"resnet{depth}")(weights=None).double()
    theirs.fc = nn.Identity()
    ours = network(depth=depth, stem="imagenet").double()
    ours.load_state_dict(theirs.state_dict())
    x = inputs(2, 3, 64, 64)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x), rtol=1e-12, atol=1e-12)


# Those of torchvision without the linear layer of 513,000 weights; that of 10 layers is half of the one of 18.
@pytest.mark.parametrize(
    ("depth", "expected"), [(18, 11_689_512 - 513_000), (34, 21_797_672 - 513_000), (10, 4_905_792)]
)
def test_parameter_counts(depth: int, expected: int) -> None:
    assert size(network(depth=depth, stem="imagenet")) == expected
    assert size(network(depth=depth)) == expected - 3 * 64 * (49 - 9)


def test_the_stem_for_small_images_keeps_their_size() -> None:
    maps = []
    small = network(channels=1, side=28, width=2, depth=10)
    small.layer1.register_forward_hook(lambda module, x, out: maps.append(out.shape))
    assert small(torch.zeros(2, 1, 28, 28)).shape == (2, 16)
    assert maps == [(2, 2, 28, 28)]
    assert network(side=64, width=2, stem="imagenet")(torch.zeros(2, 3, 64, 64)).shape == (2, 16)


def test_initial_values_are_normal_by_the_number_of_outputs() -> None:
    with seeded(make_key(0)):
        assert_he_normal(network(depth=10, width=32))


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_every_plan_is_equal(stem: str) -> None:
    assert_equal_plans(ResNet(ResNetOptions.model_validate({"depth": 10, "width": 2, "stem": stem})), 1, 24, 24)


def test_inputs_other_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[channels, height, width\].*\[6\]"):
        ResNet(ResNetOptions()).build(spec_of(6))
