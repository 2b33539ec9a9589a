"""Weights from a file: they become the initial values of a run, which never reads the file again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import metaforge
from metaforge.authoring import Params, PretrainedBackbone, PretrainedOptions, TaskShape, TaskSpec, make_key, seeded
from metaforge.cli.app import app
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.outside_weights import load_weights, read_weights
from metaforge_plugins.backbones.conv4 import Conv4
from tests.reliability.interruptions import StopAfter

SPEC = TaskSpec("classification", (1, 16, 16), 5, TaskShape(5, 1, 5))
QUICK: dict[str, Any] = {
    "dataset": {"name": "glyphs", "size": 16, "train": 20, "val": 8, "test": 8},
    "tasks": 2,
    "settings": {
        "engine": {"threads": 1},
        "evaluate": {"tasks": 10},
        "task": {"queries": 2},
        "train": {"ways": 5, "queries": 2},
    },
}


def network(seed: int = 0) -> nn.Module:
    """Return a network of the backbone `conv4` whose statistics are those of some inputs."""
    with seeded(make_key(seed)):
        module = Conv4(Conv4.Config(filters=4)).build(SPEC)
        module(torch.rand(20, 1, 16, 16))
    return module


def saved(path: Path, seed: int = 0, **changes: Tensor) -> Path:
    save_file(network(seed).state_dict() | changes, path)
    return path


def trained(out: Path, weights: Path, learner: str = "protonet", steps: int = 3, **more: Any) -> Any:
    backbone = {"name": "conv4", "filters": 4, "weights": str(weights)}
    return metaforge.train(learner, backbone=backbone, steps=steps, out=out, **{**QUICK, **more})


def test_the_tensors_and_the_digest_are_those_of_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.safetensors")
    found = read_weights(path)
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    own = network().state_dict()
    assert found.tensors.keys() == own.keys()
    assert all(torch.equal(found.tensors[name], own[name]) for name in own)


@pytest.mark.parametrize("content", [b"", b"pickle", b"\xff" * 40, None])
def test_a_file_that_is_no_safetensors_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "net"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="weights cannot be read") as caught:
        read_weights(path)
    assert str(path) in caught.value.where
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigError, match="weights cannot be read"):
            read_weights(other)


def test_parameters_and_buffers_are_loaded() -> None:
    module, other = network(1), network(2)
    load_weights(module, other.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())
    half = {n: value.half() if value.is_floating_point() else value for n, value in network(3).state_dict().items()}
    load_weights(module, half)
    assert module.state_dict()["0.conv.weight"].dtype == torch.float32


MISFITS: list[tuple[dict[str, Tensor | None], str]] = [
    ({"0.conv.bias": None, "1.conv.bias": None}, "the file has no '0.conv.bias'"),
    ({"5.weight": torch.ones(1)}, "the network has no '5.weight', which the file has"),
    ({"1.norm.running_mean": torch.ones(5)}, r"'1.norm.running_mean' has the shape \[5\] in the file and \[4\]"),
    ({"1.norm.weight": torch.ones(4, dtype=torch.int64)}, "'1.norm.weight' is torch.int64 in the file"),
]


@pytest.mark.parametrize(("changes", "message"), MISFITS)
def test_the_first_misfit_is_named(changes: dict[str, Tensor | None], message: str) -> None:
    weights = {n: value for n, value in (network().state_dict() | changes).items() if value is not None}
    module = network(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        load_weights(module, weights)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_buffer_that_a_run_would_lose_is_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_buffer("scale", torch.ones(2))
    load_weights(module, nn.Sequential(nn.Linear(2, 2)).state_dict() | {"scale": torch.ones(2)})
    with pytest.raises(ConfigError, match="The buffer 'scale' differs"):
        load_weights(module, module.state_dict() | {"scale": torch.zeros(2)})


@pytest.mark.parametrize(("learner", "head"), [("protonet", "model."), ("maml", "model.0.")])
def test_a_run_begins_with_the_weights_of_the_file(learner: str, head: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.safetensors")
    settings = {**QUICK["settings"], "learner": {"norm": "running"}}
    run = trained(tmp_path / "run", path, learner, steps=0, settings=settings)
    state = network().state_dict()
    for name, statistic in (("mean", "running_mean"), ("var", "running_var")):
        assert torch.equal(run.values[f"state.{head}2.norm.{name}"], state[f"2.norm.{statistic}"])
    names = dict(network().named_parameters())
    assert all(torch.equal(run.values[f"{head}{name}"], state[name]) for name in names)
    recorded = json.loads((tmp_path / "run" / "env.json").read_text())["weights"]
    assert recorded["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_never_depends_on_the_file_again(tmp_path: Path) -> None:
    """Overwriting the file changed the accuracy of a finished run."""
    path = saved(tmp_path / "net.safetensors")
    run = trained(tmp_path / "run", path)
    expected = run.evaluate()["results"]
    for change in (lambda: saved(path, seed=9), path.unlink):
        change()
        loaded = metaforge.load(tmp_path / "run")
        assert all(torch.equal(loaded.values[name], run.values[name]) for name in run.values)
        assert loaded.evaluate()["results"] == expected


@pytest.mark.parametrize("stop", [0, 2])
def test_a_run_is_resumed_without_the_file(stop: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.safetensors")
    whole = trained(tmp_path / "whole", path)
    try:
        trained(tmp_path / "run", path, hooks=[StopAfter(stop)])
    except KeyboardInterrupt:
        path.unlink()
    result = CliRunner().invoke(app, ["train", "--resume", str(tmp_path / "run"), "--no-progress"])
    assert result.exit_code == 0, result.output
    ours = checkpoint.load_latest(tmp_path / "run" / "ckpt")[0]
    assert ours.step == 3
    assert all(torch.equal(ours.values[name], whole.values[name]) for name in whole.values)


def test_weights_that_do_not_fit_leave_no_run_folder(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.safetensors", **{"0.conv.weight": torch.ones(4, 3, 3, 3)})
    with pytest.raises(ConfigError, match=r"\[4, 3, 3, 3\] in the file and \[4, 1, 3, 3\] in the network"):
        trained(tmp_path / "run", path)
    assert not (tmp_path / "run").exists()


LAYERS = [f"{i}.norm" for i in range(4)]


@pytest.mark.parametrize(
    ("learner", "norm", "expected"),
    [
        ("maml", "transductive", LAYERS),
        ("maml", "per-step", LAYERS),
        ("protonet", "support", LAYERS),
        ("protonet", "running", None),
    ],
)
def test_running_statistics_that_the_norm_policy_does_not_use_are_recorded(
    learner: str, norm: str, expected: list[str] | None, tmp_path: Path
) -> None:
    path = saved(tmp_path / "net.safetensors")
    trained(tmp_path / "run", path, learner, 0, settings={**QUICK["settings"], "learner": {"norm": norm}})
    found = json.loads((tmp_path / "run" / "env.json").read_text())["weights"].get("unused_statistics")
    assert found == (None if expected is None else {"norm": norm, "layers": expected})


def test_statistics_that_are_those_of_a_new_network_are_not_recorded(tmp_path: Path) -> None:
    new = Conv4(Conv4.Config(filters=4)).build(SPEC).state_dict()
    assert load_weights(network(), {**new, "0.norm.running_mean": torch.ones(4)}) == LAYERS
    assert load_weights(Conv4(Conv4.Config(filters=4)).build(SPEC), {**new, "1.norm.running_var": torch.zeros(4)}) == [
        "1.norm"
    ]
    assert load_weights(nn.BatchNorm1d(2), nn.BatchNorm1d(2).state_dict() | {"running_mean": torch.ones(2)}) == [
        "BatchNorm1d"
    ]
    save_file(new, tmp_path / "net.safetensors")
    trained(tmp_path / "run", tmp_path / "net.safetensors", "maml", 0)
    assert "unused_statistics" not in json.loads((tmp_path / "run" / "env.json").read_text())["weights"]


class Fetching(PretrainedBackbone):
    """Conv-4 with four filters, whose trained weights are those of `network(3)`."""

    Config = PretrainedOptions
    calls = 0
    fails = False

    def __init__(self, config: PretrainedOptions) -> None: ...

    def build(self, spec: TaskSpec) -> nn.Module:
        return Conv4(Conv4.Config(filters=4)).build(spec)

    def pretrained(self, spec: TaskSpec) -> Params:
        Fetching.calls += 1
        if self.fails:
            raise OSError("no route")
        torch.rand(1)
        return network(3).state_dict()


@pytest.fixture
def fetching(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return the installed plugins and `Fetching`, which has not been called."""
    monkeypatch.setattr(Fetching, "calls", 0)
    return scan().with_plugin("backbone", "fetching", Fetching)


def test_a_backbone_fetches_its_weights_once_when_a_run_begins(fetching: Registry, tmp_path: Path) -> None:
    options = {"backbone": {"name": "fetching", "pretrained": True}, "registry": fetching, **QUICK}
    generator = torch.random.get_rng_state()
    run = metaforge.train("protonet", steps=0, out=tmp_path / "run", **options)
    assert torch.equal(torch.random.get_rng_state(), generator)
    expected = dict(network(3).named_parameters())
    assert all(torch.equal(run.values[f"model.{name}"], value) for name, value in expected.items())
    recorded = json.loads((tmp_path / "run" / "env.json").read_text())["weights"]
    assert recorded["pretrained"] == "fetching"
    save_file(network(3).state_dict(), tmp_path / "net.safetensors")
    assert recorded["sha256"] == hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    again = metaforge.load(tmp_path / "run", registry=fetching)
    assert all(torch.equal(again.values[name], run.values[name]) for name in run.values)
    again.evaluate()
    assert Fetching.calls == 1
    options["backbone"] = "fetching"
    metaforge.train("protonet", steps=0, out=tmp_path / "other", **options)
    assert Fetching.calls == 1


def test_weights_that_cannot_be_fetched_leave_no_run_folder(
    fetching: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"backbone": {"name": "fetching", "pretrained": True}, "registry": fetching, **QUICK}
    monkeypatch.setattr(Fetching, "fails", True)
    with pytest.raises(PluginError, match="cannot fetch its pretrained weights: OSError: no route"):
        metaforge.train("protonet", steps=0, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    options["backbone"] = {"name": "fetching", "pretrained": True, "weights": "net.safetensors"}
    with pytest.raises(ConfigError, match="pretrained and weights exclude each other"):
        metaforge.train("protonet", steps=0, out=tmp_path / "run", **options)
