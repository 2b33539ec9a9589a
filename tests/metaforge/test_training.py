"""The outer loop: what a run leaves behind, that it repeats itself, and how it ends when something goes wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metaforge
from metaforge import hookimpl
from metaforge.errors import ConfigError, DivergedError, StorageError

QUICK: dict[str, Any] = {
    "dataset": {"name": "sinusoid"},
    "steps": 6,
    "tasks": 3,
    "settings": {"train": {"log_every": 2}, "engine": {"threads": 1}, "evaluate": {"tasks": 20}},
}


def trained(out: Path, **more: Any) -> Any:
    return metaforge.train("maml", **{**QUICK, **more}, out=out)


def test_the_run_folder_tells_the_whole_run(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"config.toml", "command.txt", "env.json", "metrics.jsonl", "status.json", "ckpt", "report.md"}
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all({"loss", "score", "score_ci", "elapsed", "tasks_per_second"} <= row.keys() for row in rows)
    status = json.loads((run.folder / "status.json").read_text())
    assert status["outcome"] == "finished"
    assert status["steps"] == 6
    assert (run.folder / "pictures" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_configuration_reproduces_the_run_bit_for_bit(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", seed=5)
    again = metaforge.train("maml", config=first.folder / "config.toml", out=tmp_path / "b")
    other = trained(tmp_path / "c", seed=6)
    assert all(torch.equal(first.values[name], again.values[name]) for name in first.values)
    assert not all(torch.equal(first.values[name], other.values[name]) for name in first.values)


def test_a_loaded_run_is_the_trained_one(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    loaded = metaforge.load(run.folder)
    assert loaded.values.keys() == run.values.keys()
    assert all(torch.equal(loaded.values[name], run.values[name]) for name in run.values)
    one, two = (r.evaluate(tasks=20) for r in (run, loaded))
    assert one["results"] == two["results"]


def test_evaluation_leaves_the_values_alone(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    before = {name: value.clone() for name, value in run.values.items()}
    run.evaluate(tasks=10)
    assert all(torch.equal(before[name], run.values[name]) for name in before)


def test_a_learner_adapts_in_python(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    learner = run.learner()
    task = run.dataset.sample("test", run.spec().shape, 0, 1, seed=1)
    support = type(task.support)(*(part[0] for part in task.support))
    fast = learner.adapt(run.values, support)
    assert learner.predict(run.values, fast, task.query.x[0]).shape == task.query.y[0].shape


def test_any_module_is_a_backbone_and_stays_as_it_was(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run = trained(tmp_path / "run", backbone=module)
    assert isinstance(module[2], nn.BatchNorm1d)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.isfinite(torch.stack([v.norm() for v in run.values.values()])).all()
    again = metaforge.load(run.folder, backbone=module)
    assert all(torch.equal(again.values[name], run.values[name]) for name in run.values)


def test_a_module_by_path_is_for_python_only(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", backbone="torch.nn:Flatten")
    assert any(name.endswith("weight") for name in run.values)
    config = tmp_path / "run.toml"
    config.write_text('[learner]\nname = "maml"\n[backbone]\nname = "torch.nn:Flatten"\n')
    with pytest.raises(metaforge.errors.MetaForgeError):
        metaforge.train("maml", config=config, out=tmp_path / "refused")


def test_a_diverging_run_stops_by_name_and_keeps_the_weights_before(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="no longer finite"):
        trained(tmp_path / "run", adapters={"sgd": {"lr": 1e30}})
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("failed", 6)
    loaded = metaforge.load(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in loaded.values.values())


def test_a_folder_that_exists_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        trained(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_the_budget_ends_a_run(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", steps=1_000_000, budget=0.3)
    assert 1 <= run.summary["steps"] < 1_000_000
    assert run.summary["outcome"] == "finished"


class Watch:
    """Notes every hook that is called."""

    def __init__(self, stop_at: int | None = None, fail_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.stop_at, self.fail_at = stop_at, fail_at

    @hookimpl
    def metaforge_run_start(self) -> None:
        self.seen.append("start")

    @hookimpl
    def metaforge_after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.seen.append(f"step {step}")
        assert metrics["loss"] > 0
        if step == self.fail_at:
            raise RuntimeError("a hook broke")

    @hookimpl
    def metaforge_after_eval(self, split: str) -> None:
        self.seen.append(f"eval {split}")

    @hookimpl
    def metaforge_should_stop(self, step: int) -> bool | None:
        return step == self.stop_at or None

    @hookimpl
    def metaforge_checkpoint(self, step: int) -> None:
        self.seen.append(f"saved {step}")

    @hookimpl
    def metaforge_run_end(self, outcome: str) -> None:
        self.seen.append(outcome)


def test_hooks_are_called_in_order_and_may_stop_a_run(tmp_path: Path) -> None:
    watch = Watch(stop_at=2)
    settings = {"train": {"validate_every": 2, "validate_tasks": 4}}
    trained(tmp_path / "run", hooks=[watch], settings=settings)
    assert watch.seen == ["start", "step 1", "step 2", "eval val", "saved 2", "stopped"]


def test_a_raising_hook_fails_the_run_but_it_still_ends(tmp_path: Path) -> None:
    watch = Watch(fail_at=3)
    with pytest.raises(RuntimeError, match="a hook broke"):
        trained(tmp_path / "run", hooks=[watch])
    assert watch.seen[-1] == "failed"
    assert json.loads((tmp_path / "run" / "status.json").read_text())["outcome"] == "failed"


def test_ways_of_training_must_fit_a_learner_with_fixed_outputs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one output per class"):
        metaforge.train("maml", "glyphs", steps=1, settings={"train": {"ways": 7}}, out=tmp_path / "run")


def test_a_dry_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaforge.config import Layer, resolve
    from metaforge.registry import scan
    from metaforge.training import run_training

    monkeypatch.chdir(tmp_path)
    registry = scan()
    resolved = resolve([Layer("test", {"learner": "maml", "dataset": "sinusoid"})], registry)
    run = run_training(resolved, registry, dry_run=True)
    assert run.summary["steps"] == 1
    assert list(tmp_path.iterdir()) == []
