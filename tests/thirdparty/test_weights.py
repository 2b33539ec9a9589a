"""A backbone of a third party begins with weights from a file, and its runs never depend on the file again."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

import metaforge
from metaforge.authoring import Backbone, BackboneOptions, TaskShape, TaskSpec
from metaforge.errors import ConfigError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs.run import Run
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.toy import ToyClasses


class ResidualOptions(BackboneOptions):
    """Options of the residual network."""

    width: int = Field(8, ge=1, le=512, description="units of each layer")


class Residual(Backbone):
    """Two layers with batch norm, the second of which adds to its input."""

    Config = ResidualOptions

    def __init__(self, config: ResidualOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        return ResidualNet(prod(spec.x_shape), self.config.width)


class ResidualNet(nn.Module):
    """The network of `Residual`."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x.flatten(1))).tanh()
        return hidden + self.second(hidden).tanh()


SPEC = TaskSpec("classification", (6,), 3, TaskShape(3, 1, 4))
SETTINGS: dict[str, Any] = {
    "task": {"ways": 3, "queries": 4},
    "train": {"ways": 3, "queries": 4},
    "engine": {"threads": 1},
    "evaluate": {"tasks": 20},
}


@parametrize_with_checks([Subject("backbone", "residual", Residual)])
def test_the_backbone_passes_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return scan().with_plugin("backbone", "residual", Residual).with_plugin("dataset", "toy", ToyClasses)


def pretrained(path: Path, scale: float = 1.0) -> nn.Module:
    """Save the weights of a network that has seen inputs, in plain PyTorch, and return it in evaluation mode."""
    module = Residual(ResidualOptions()).build(SPEC)
    with torch.no_grad():
        for number, value in enumerate(module.parameters()):
            value.copy_(scale * torch.linspace(-1, 1, value.numel()).reshape(value.shape).roll(number))
        module(3 + torch.linspace(-2, 2, 240).reshape(40, 6))
    save_file(module.state_dict(), path)
    return module.eval()


def scores(run: Run) -> Any:
    return run.evaluate()["results"][0]["scores"]


@pytest.mark.parametrize("steps", [0, 3])
def test_runs_begin_with_the_weights_and_keep_their_numbers(registry: Registry, tmp_path: Path, steps: int) -> None:
    path = tmp_path / "net.safetensors"
    module = pretrained(path)
    backbone = {"name": "residual", "weights": str(path)}
    settings = {**SETTINGS, "learner": {"norm": "running"}}
    run = metaforge.train(
        "protonet", "toy", backbone=backbone, steps=steps, out=tmp_path / "run", settings=settings, registry=registry
    )
    if not steps:
        # The features of a query are those of the network in plain PyTorch, its running statistics included.
        task = run.task()
        own = module(torch.cat([task.support.x, task.query.x]))
        learner: Any = run.learner()
        support, query, _ = learner.model.observe_task(run.values, task, None)
        torch.testing.assert_close(torch.cat([support, query]), own)
    expected = scores(run)
    recorded = json.loads((tmp_path / "run" / "env.json").read_text())["weights"]
    assert (recorded["path"], recorded["tensors"]) == (str(path), 9)
    pretrained(path, scale=-2.0)
    assert scores(metaforge.load(tmp_path / "run", registry=registry)) == expected
    path.unlink()
    assert scores(metaforge.load(tmp_path / "run", registry=registry)) == expected


def test_weights_of_another_width_are_refused_by_name(registry: Registry, tmp_path: Path) -> None:
    pretrained(tmp_path / "net.safetensors")
    backbone = {"name": "residual", "width": 9, "weights": str(tmp_path / "net.safetensors")}
    with pytest.raises(ConfigError, match=r"'first.weight' has the shape \[8, 6\] in the file and \[9, 6\]"):
        metaforge.train("protonet", "toy", backbone=backbone, settings=SETTINGS, registry=registry)
