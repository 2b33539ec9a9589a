"""A run's computation: what cannot be computed as asked is refused by name, what can be adjusted is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaforge
from metaforge.errors import ConfigError
from metaforge.system import machine


class Linear(nn.Module):
    """A linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Branching(Linear):
    """Takes a way that depends on a number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh() if x.abs().mean().item() > 0 else super().forward(x)


class Recurrent(nn.Module):
    """A layer of torch that changes its output in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(1, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.unsqueeze(1))[0][:, 0]
        return out


class Wrong(Linear):
    """Fails by any plan."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("mine")


def trained(out: Path, backbone: nn.Module | None = None, tasks: int = 2, **engine: Any) -> metaforge.Run:
    settings = {"engine": {"threads": 1, **engine}}
    return metaforge.train("maml", "sinusoid", backbone=backbone, steps=1, tasks=tasks, settings=settings, out=out)


@pytest.mark.parametrize("backbone", [Branching, Recurrent])
@pytest.mark.parametrize("plan", ["auto", "vmap"])
def test_a_plan_that_a_network_cannot_take_is_refused_by_name(
    tmp_path: Path, backbone: Callable[[], nn.Module], plan: str
) -> None:
    name = "fold" if plan == "auto" else plan
    with pytest.raises(ConfigError, match=f"Plan '{name}' cannot run MAML: ") as caught:
        trained(tmp_path / "refused", backbone(), plan=plan)
    assert caught.value.where == "engine.plan"
    assert caught.value.remedy == "set engine.plan to loop"
    assert trained(tmp_path / "run", backbone(), plan="loop").summary["steps"] == 1


def test_a_network_that_cannot_be_compiled_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A compiled step cannot run MAML: ") as caught:
        trained(tmp_path / "run", Branching(), plan="loop", compile="on")
    assert (caught.value.where, caught.value.remedy) == ("engine.compile", "set engine.compile to off")


def test_an_error_by_every_plan_is_the_networks_own(tmp_path: Path) -> None:
    glyphs = {"name": "glyphs", "train": 60, "val": 5, "test": 5}
    with pytest.raises(RuntimeError, match="mine"):
        metaforge.train("protonet", glyphs, backbone=Wrong(), steps=1, out=tmp_path / "run")


def test_exact_sums_have_no_more_groups_than_there_are_tasks(tmp_path: Path) -> None:
    one, other = (trained(tmp_path / str(shards), tasks=3, reduce="exact", shards=shards) for shards in (3, 4))
    assert all(torch.equal(value, other.values[name]) for name, value in one.values.items())


def test_a_process_without_a_gpu_of_its_own_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"no GPU for process 2 \(counted from 0\): this machine has 2"):
        machine.choose_device("cuda", 2)


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 4, 5}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert machine.cores() == 1
