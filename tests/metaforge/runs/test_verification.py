"""Before a run its network is compared with plain PyTorch: once, unless it always or never should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import metaforge
from metaforge.errors import ConfigError
from metaforge.runs import verification
from plain_networks import Growing


class Plain(nn.Module):
    """A linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x).tanh()
        return out


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return the names of the networks that were compared, with a cache of their own."""
    monkeypatch.setenv("METAFORGE_CACHE", str(tmp_path / "cache"))
    found: list[str] = []
    compare = verification.compare_module

    def watched(network: nn.Module, x_shape: tuple[int, ...]) -> Any:
        found.append(type(network).__name__)
        return compare(network, x_shape)

    monkeypatch.setattr(verification, "compare_module", watched)
    return found


def trained(out: Path, backbone: Any, learner: str = "maml", **engine: Any) -> dict[str, Any]:
    settings = {"engine": {"threads": 1, **engine}, "train": {"validate_every": 0}}
    metaforge.train(learner, "sinusoid", backbone=backbone, steps=1, tasks=2, settings=settings, out=out)
    facts: dict[str, Any] = json.loads((out / "env.json").read_text("utf-8"))
    return facts


def test_a_network_is_compared_once_for_each_plan_and_network(compared: list[str], tmp_path: Path) -> None:
    facts = trained(tmp_path / "a", Plain())
    assert facts["verified"].keys() == {"network", "meta_gradient"}
    assert max(facts["verified"].values()) < 1e-12
    assert trained(tmp_path / "b", Plain())["verified"] == facts["verified"]
    assert compared == ["Plain"]
    trained(tmp_path / "c", Plain(), plan="vmap")
    assert compared == ["Plain", "Plain"]
    trained(tmp_path / "d", nn.Sequential(Plain(), nn.ReLU()))
    assert compared == ["Plain", "Plain", "Sequential"]


def test_it_is_compared_always_or_never_on_request(compared: list[str], tmp_path: Path) -> None:
    for number in range(2):
        trained(tmp_path / f"always-{number}", Plain(), verify="always")
    assert compared == ["Plain", "Plain"]
    assert "verified" not in trained(tmp_path / "off", Plain(), verify="off")
    assert "verified" not in trained(tmp_path / "own", "mlp")
    assert compared == ["Plain", "Plain"]
    assert "verified" in trained(tmp_path / "own-always", "mlp", verify="always")


def test_a_first_order_learner_has_its_network_compared_alone(compared: list[str], tmp_path: Path) -> None:
    assert trained(tmp_path / "run", Plain(), learner="fomaml")["verified"].keys() == {"network"}
    assert compared == ["Plain"]


def test_a_network_that_differs_stops_the_run_before_it_begins(compared: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="differs from the module itself") as caught:
        trained(tmp_path / "run", nn.Sequential(nn.Linear(1, 8), Growing()))
    assert caught.value.where == "backbone"
    assert "engine.verify" in caught.value.remedy
    assert not (tmp_path / "run").exists()
    trained(tmp_path / "other", nn.Sequential(nn.Linear(1, 8), Growing()), verify="off")


def test_a_network_with_hooks_is_not_remembered(compared: list[str], tmp_path: Path) -> None:
    for number in range(2):
        network = Plain()
        network.register_forward_hook(lambda module, inputs, output: output + 1)
        trained(tmp_path / f"run-{number}", network)
    assert compared == ["Plain", "Plain"]


def test_a_comparison_that_takes_seconds_is_announced(
    compared: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "small", Plain())
    assert "is compared" not in capsys.readouterr().err
    monkeypatch.setattr(verification, "_LARGE", 10)
    trained(tmp_path / "large", Plain(), verify="always")
    assert "Note: the network is compared with plain PyTorch" in capsys.readouterr().err
