"""torchvision: classifiers by name, without their heads, for images of one or three channels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backbone_plans import inputs, size, spec_of
from benchmarks.zoo import import_torchvision
from library_runs import assert_equal_runs, trained
from metaforge.authoring import make_key, seeded
from metaforge.errors import ConfigError
from metaforge.testing import Check, Subject
from metaforge.testing.checks.backbones import build, features
from metaforge.testing.checks.general import config, contract, summary
from metaforge_plugins.backbones.torchvision import TorchVision, TorchVisionOptions

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def models() -> Any:
    """Return the package with the networks."""
    return import_torchvision().models


def network(model: str, *x_shape: int) -> nn.Module:
    with seeded(make_key(0)):
        return TorchVision(TorchVisionOptions(model=model)).build(spec_of(*x_shape))


@pytest.mark.parametrize("check", [build, config, contract, features, summary], ids=lambda check: check.name)
def test_it_passes_the_checks_of_the_kit_that_do_not_train(check: Check) -> None:
    check(Subject.of("backbone:torchvision", options={"model": SMALL}))


@pytest.mark.parametrize(("model", "head"), [("resnet18", "fc"), (SMALL, "fc"), ("mobilenet_v2", "classifier.1")])
def test_the_features_are_what_the_last_layer_takes(models: Any, model: str, head: str) -> None:
    ours = network(model, 3, 32, 32).double().eval()
    theirs = models.get_model(model, weights=None).double().eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x, last = inputs(2, 3, 32, 32), theirs.get_submodule(head)
    torch.testing.assert_close(last(ours(x)), theirs(x), rtol=1e-12, atol=1e-12)
    assert size(ours) == size(theirs) - size(last)


def test_a_grey_image_counts_as_three_equal_channels() -> None:
    grey, colour = (network("resnet18", channels, 32, 32) for channels in (1, 3))
    x = inputs(2, 1, 32, 32).float()
    summed, whole = (made.conv1 for made in (grey, colour))
    torch.testing.assert_close(summed(x), whole(x.expand(-1, 3, -1, -1)))
    rest = [dict(made.named_parameters()) for made in (grey, colour)]
    assert all(torch.equal(value, rest[1][name]) for name, value in rest[0].items() if name != "conv1.weight")


@pytest.mark.parametrize(
    ("model", "x_shape", "said"),
    [
        ("resnet19", (3, 32, 32), "no classifier 'resnet19'. Did you mean 'resnet18'"),
        ("fcn_resnet50", (3, 32, 32), "no classifier 'fcn_resnet50'"),
        ("resnet18", (2, 32, 32), "images of 1 or 3 channels, but those of the data set have 2"),
        ("resnet18", (6,), r"\[channels, height, width\].*\[6\]"),
        ("squeezenet1_1", (3, 32, 32), "'squeezenet1_1' does not end in a linear layer"),
    ],
)
def test_what_cannot_be_built_is_refused(model: str, x_shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        network(model, *x_shape)


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ConfigError, match="torchvision cannot be imported") as caught:
        network("resnet18", 3, 32, 32)
    assert "metaforge[torchvision]" in caught.value.remedy


def test_vision_transformers_have_the_size_of_the_images_and_others_no_further_outputs() -> None:
    made = network("vit_b_32", 3, 64, 64).eval()
    assert made.encoder.pos_embedding.shape[1] == 5
    assert made(torch.zeros(1, 3, 64, 64)).shape == (1, 768)
    assert network("googlenet", 3, 32, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 1024)


def test_a_step_of_training_is_equal_by_every_plan(tmp_path: Path) -> None:
    assert_equal_runs(tmp_path, f"torchvision:{SMALL}", "vmap", "fold")


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    with seeded(make_key(5)):
        saved = network(SMALL, 1, 32, 32).state_dict()
    changed = {name: value + 1 for name, value in saved.items() if name.endswith("weight")}
    save_file(saved | changed, tmp_path / "net.safetensors")
    backbone = {"name": "torchvision", "model": SMALL, "weights": str(tmp_path / "net.safetensors")}
    run = trained(tmp_path / "run", backbone, steps=0)
    assert all(torch.equal(run.values[f"model.{name}"], value.double()) for name, value in changed.items())
