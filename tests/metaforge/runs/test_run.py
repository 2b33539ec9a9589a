"""A trained run: loading it, applying its learner, evaluating it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import metaforge
from metaforge.errors import ConfigError, DataError, PluginError, StorageError
from quick_runs import trained


def test_a_loaded_run_equals_the_trained_one(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    loaded = metaforge.load(run.folder)
    assert loaded.values.keys() == run.values.keys()
    assert all(torch.equal(loaded.values[name], run.values[name]) for name in run.values)
    one, two = (r.evaluate(tasks=20) for r in (run, loaded))
    assert one["results"] == two["results"]


def test_evaluation_does_not_change_the_values(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    before = {name: value.clone() for name, value in run.values.items()}
    run.evaluate(tasks=10)
    assert all(torch.equal(before[name], run.values[name]) for name in before)


def test_a_learner_adapts_in_python(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    learner, task = run.learner(), run.task(3, shots=4)
    assert task.support.x.shape == (4, 1)
    fast = learner.adapt(run.values, task.support)
    assert learner.predict(run.values, fast, task.query.x).shape == task.query.y.shape
    batch = run.dataset.sample("test", run.spec(shots=4).shape, 3, 1, seed=run.resolved.run.evaluate.seed)
    assert torch.equal(task.support.x, batch.support.x[0])
    assert not torch.equal(run.task(3, split="val").query.y, run.task(3, split="val", seed=1).query.y)


def test_a_task_of_images_is_ready_for_the_learner(tmp_path: Path) -> None:
    run = metaforge.train("protonet", "glyphs", steps=1, tasks=1, out=tmp_path / "run")
    task = run.task()
    assert task.support.x.dtype == run.dtype
    assert 0.0 <= float(task.support.x.min()) < float(task.support.x.max()) <= 1.0
    fast = run.learner().adapt(run.values, task.support)
    assert run.learner().predict(run.values, fast, task.query.x).shape == (75, 5)


def test_an_error_of_the_data_set_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run")
    kind = type(run.dataset)

    def broken(self: Any, *arguments: Any, **named: Any) -> Any:
        raise LookupError("lost")

    monkeypatch.setattr(kind, "sample", broken)
    with pytest.raises(PluginError, match="raised LookupError in its sample: lost"):
        run.task()
    monkeypatch.setattr(kind, "sample", lambda self, *arguments, **named: None)
    with pytest.raises(PluginError, match="sample returns NoneType"):
        run.task()
    monkeypatch.setattr(kind, "spec", lambda self, split, shape: None)
    with pytest.raises(PluginError, match="spec returns None"):
        run.spec()


def test_a_run_is_loaded_on_the_requested_device(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    config = run.folder / "config.toml"
    config.write_text(config.read_text().replace('device = "auto"', 'device = "mps"'))
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="No mps device"):
            metaforge.load(run.folder)
    assert metaforge.load(run.folder, device="cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="There is no device 'cpt'"):
        metaforge.load(run.folder, device="cpt")


def test_invalid_numbers_of_an_evaluation_are_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    for wrong in ({"tasks": 0}, {"shots": [0]}, {"steps": [-1]}, {"split": ""}, {"ways": 0}):
        with pytest.raises((ConfigError, DataError)):
            run.evaluate(**{"tasks": 2, **wrong})
    answer = run.evaluate(tasks=2, shots=[], steps=[])
    assert [result["shots"] for result in answer["results"]] == [10]
    assert [score["steps"] for score in answer["results"][0]["scores"]] == [0, run.learner().steps]


def test_an_evaluation_is_not_started_if_its_folder_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run")
    monkeypatch.setattr("metaforge.runs.run.evaluate_run", lambda *given, **named: pytest.fail("it was begun"))

    def refused(**given: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(given["dir"]))

    monkeypatch.setattr("metaforge.system.files.tempfile.TemporaryFile", refused)
    with pytest.raises(StorageError, match="Read-only file system"):
        run.evaluate(tasks=2)
