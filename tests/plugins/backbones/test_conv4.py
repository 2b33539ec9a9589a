"""Conv-4: the published variants, by their parameter counts and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaforge.authoring.descent import Chain
from metaforge.authoring.keys import make_key
from metaforge.authoring.network import with_head
from metaforge.authoring.protocols import Examples, Parts, Task, TaskShape, TaskSpec
from metaforge.engine.batch import meta_gradients
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.backbones.conv4 import Conv4, Conv4Options
from metaforge_plugins.learners.gradient.maml import MAML

OMNIGLOT = TaskSpec("classification", (1, 28, 28), 5, TaskShape(5, 1, 15))
MINI = TaskSpec("classification", (3, 84, 84), 5, TaskShape(5, 1, 15))


def size(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("spec", "options", "head", "expected"),
    [
        (OMNIGLOT, {"variant": "pool"}, False, 111_936),
        (OMNIGLOT, {"affine": "shift"}, True, 112_005),
        (MINI, {"variant": "pool-32"}, True, 32_901),
        (MINI, {"variant": "pool-32", "affine": "shift"}, True, 32_773),
    ],
)
def test_parameter_counts(spec: TaskSpec, options: dict[str, str], head: bool, expected: int) -> None:
    body = Conv4(Conv4Options(**options))  # type: ignore[arg-type]
    network = with_head(lambda: body.build(spec), 5, spec.x_shape)() if head else body.build(spec)
    assert size(network) == expected


@pytest.mark.parametrize(
    ("spec", "variant", "shape"),
    [
        (OMNIGLOT, "stride", (64,)),
        (OMNIGLOT, "stride-flat", (256,)),
        (OMNIGLOT, "pool", (64,)),
        (OMNIGLOT, "relation", (64, 5, 5)),
        (MINI, "pool-32", (800,)),
        (MINI, "pool", (1600,)),
    ],
)
def test_features(spec: TaskSpec, variant: str, shape: tuple[int, ...]) -> None:
    network = Conv4(Conv4Options(variant=variant)).build(spec)  # type: ignore[arg-type]
    assert network(torch.zeros(2, *spec.x_shape)).shape == (2, *shape)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 4


def test_seeds_large_images_pool_to_2304_features() -> None:
    spec = TaskSpec("classification", (1, 105, 105), 5, TaskShape(5, 1, 1))
    assert Conv4(Conv4Options(variant="pool")).build(spec)(torch.zeros(2, 1, 105, 105)).shape == (2, 2304)


@pytest.mark.parametrize(("affine", "names"), [("both", {"weight", "bias"}), ("shift", {"bias"}), ("none", set())])
def test_norm_parameters(affine: str, names: set[str]) -> None:
    network = Conv4(Conv4Options(filters=4, affine=affine)).build(OMNIGLOT)  # type: ignore[arg-type]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4
    assert all(set(dict(m.named_parameters())) == names for m in norms)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 4)


def test_pooling_before_the_activation_is_the_same_as_after() -> None:
    network = Conv4(Conv4Options(variant="pool", filters=4)).build(OMNIGLOT).eval()
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    out = x
    for block in network[:4]:  # type: ignore[index]
        out = block.pool(block.norm(block.conv(out)).relu())
    torch.testing.assert_close(network(x), out.flatten(1))


@pytest.mark.parametrize("affine", ["both", "shift", "none"])
@pytest.mark.parametrize("variant", ["stride", "pool"])
def test_second_order_on_images_is_the_same_in_a_loop_and_vectorised(variant: str, affine: str) -> None:
    spec = TaskSpec("classification", (1, 16, 16), 2, TaskShape(2, 1, 2))
    body = Conv4(Conv4Options(variant=variant, filters=3, affine=affine))  # type: ignore[arg-type]
    chain = Chain({"sgd": SGD(SGDOptions(lr=0.1))})
    learner = MAML(MAML.Config(steps=2), Parts(spec, lambda: body.build(spec), chain))
    values = {name: value.double() for name, value in learner.init(make_key(0)).items()}
    draw = torch.Generator().manual_seed(0)
    images = [torch.rand(2, n, 1, 16, 16, generator=draw, dtype=torch.float64) for n in (2, 4)]
    labels = [torch.arange(2).repeat(n // 2).expand(2, n) for n in (2, 4)]
    batch = Task(*(Examples(x, y) for x, y in zip(images, labels, strict=True)))
    keys = torch.stack([make_key(i) for i in range(2)])
    looped, together = (meta_gradients(learner, values, batch, keys, plan=p) for p in ("loop", "vmap"))  # type: ignore[arg-type]
    for name, gradient in looped.grads.items():
        torch.testing.assert_close(together.grads[name], gradient, rtol=1e-9, atol=1e-9)


def test_a_context_scales_and_shifts_the_channels_of_the_third_block() -> None:
    spec = TaskSpec("classification", (1, 28, 28), 5, TaskShape(5, 1, 1))
    torch.manual_seed(0)
    network = Conv4(Conv4Options()).build(spec, context=2).eval()
    plain = Conv4(Conv4Options()).build(spec).eval()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if "film" not in name})
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(network(x, torch.zeros(2)), plain(x))
    context = torch.randn(2)
    assert not torch.allclose(network(x, context), plain(x))
    films = [name for name, _ in network.named_parameters() if "film" in name]
    assert films == ["2.film.weight"]
