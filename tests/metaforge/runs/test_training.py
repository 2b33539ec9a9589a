"""The outer loop: what a run leaves behind, that it repeats itself, and how it ends when something goes wrong."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metaforge
from metaforge import hookimpl
from metaforge.authoring.protocols import Aux, Key, Learner, Options, Params, Tags, Task
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError, DataError, DivergedError, PluginError, StorageError
from metaforge.registry.scan import scan
from metaforge.results import episode_scores
from metaforge.results.statistics import mean_and_ci
from metaforge.runs import training
from metaforge.runs.training import run_training

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


def test_a_run_is_used_on_the_device_asked_for(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    config = run.folder / "config.toml"
    config.write_text(config.read_text().replace('device = "auto"', 'device = "mps"'))
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="No mps device"):
            metaforge.load(run.folder)
    assert metaforge.load(run.folder, device="cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="There is no device 'cpt'"):
        metaforge.load(run.folder, device="cpt")


def test_evaluation_refuses_what_makes_none(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    for wrong in ({"tasks": 0}, {"shots": [0]}, {"steps": [-1]}, {"split": ""}, {"ways": 0}):
        with pytest.raises((ConfigError, DataError)):
            run.evaluate(**{"tasks": 2, **wrong})
    answer = run.evaluate(tasks=2, shots=[], steps=[])
    assert [result["shots"] for result in answer["results"]] == [10]
    assert [score["steps"] for score in answer["results"][0]["scores"]] == [0, run.learner().steps]


def test_settings_lie_below_the_keywords(tmp_path: Path) -> None:
    settings = {
        "learner": {"steps": 2},
        "dataset": {"phase": "plus"},
        "train": {"lr": 0.5, "tasks": 2, "steps": 9},
        "seed": 4,
    }
    run = metaforge.train("maml", {"name": "sinusoid"}, steps=1, lr=0.01, settings=settings, out=tmp_path / "run")
    config = run.resolved.run
    assert (config.train.steps, config.train.lr, config.train.tasks, config.seed) == (1, 0.01, 2, 4)
    assert run.resolved.learner is not None
    assert run.resolved.dataset is not None
    assert run.resolved.learner.config.model_dump()["steps"] == 2
    assert run.resolved.dataset.config.model_dump()["phase"] == "plus"
    assert run.resolved.origins["learner.steps"] == "settings"


def test_options_without_a_name_are_meant_for_the_one_that_a_keyword_names(tmp_path: Path) -> None:
    settings = {"dataset": {"jitter": 0.25, "train": 60}, "train": {"tasks": 1}}
    other = {"name": "glyphs", "val": 10}
    run = metaforge.train("protonet", other, steps=1, settings=settings, out=tmp_path / "run")
    assert run.resolved.dataset is not None
    options = run.resolved.dataset.config.model_dump()
    assert (options["jitter"], options["train"], options["val"]) == (0.25, 60, 10)


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


@pytest.mark.parametrize(
    ("path", "said", "remedy"),
    [
        ("nope:Class", "cannot be imported: ModuleNotFoundError", "write module:Class"),
        (":Class", "cannot be imported: ValueError", "write module:Class"),
        ("torch.nn:Nope", "names nothing that builds a module", "write module:Class"),
        ("torch.nn:Linear", "cannot be built without arguments: missing a required argument", "that needs none"),
        ("torch.nn.functional:relu", "cannot be built without arguments", "that needs none"),
    ],
)
def test_a_path_that_makes_no_backbone_is_refused(tmp_path: Path, path: str, said: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"'{path}' {said}") as caught:
        trained(tmp_path / "run", backbone=path)
    assert remedy in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_by_name_and_keeps_the_weights_before(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="no longer finite"):
        trained(tmp_path / "run", adapters={"sgd": {"lr": 1e30}})
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("failed", 6)
    loaded = metaforge.load(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in loaded.values.values())


def test_a_folder_that_exists_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(StorageError, match="exists already"):
        trained(tmp_path / "run")
    assert [one.name for one in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_run_that_ends_for_want_of_storage_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 57_344})
    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="57,344 bytes are free"):
        trained(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 8
    assert list((tmp_path / "run" / "pictures").iterdir()) == []
    assert not (tmp_path / "run" / "report.md").exists()


def test_an_evaluation_that_could_not_be_written_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run")
    monkeypatch.setattr("metaforge.runs.run.evaluate_run", lambda *given, **named: pytest.fail("it was begun"))

    def refused(**given: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(given["dir"]))

    monkeypatch.setattr("metaforge.system.files.tempfile.TemporaryFile", refused)
    with pytest.raises(StorageError, match="Read-only file system"):
        run.evaluate(tasks=2)


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
    with pytest.raises(PluginError, match="metaforge_after_step of Watch raised RuntimeError: a hook broke") as caught:
        trained(tmp_path / "run", hooks=[watch])
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert watch.seen[-1] == "failed"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    # A step counts once its hooks have seen it: the run can go on from the one before.
    assert (status["outcome"], status["exit_code"], status["steps"]) == ("failed", 4, 2)
    assert metaforge.load(tmp_path / "run").summary["steps"] == 2


class Clumsy:
    """Breaks when the run has ended."""

    @hookimpl
    def metaforge_run_end(self) -> None:
        raise ValueError("too late")


def test_the_end_is_told_to_all_and_recorded_whoever_breaks_then(tmp_path: Path) -> None:
    first, last = Watch(), Watch()
    with pytest.raises(PluginError, match="metaforge_run_end of Clumsy"):
        trained(tmp_path / "run", hooks=[first, Clumsy(), last])
    assert first.seen[-1] == last.seen[-1] == "finished"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"], status["steps"]) == ("finished", 4, 6)


def test_the_first_error_is_the_one_told(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="metaforge_after_step of Watch") as caught:
        trained(tmp_path / "run", hooks=[Clumsy(), Watch(fail_at=1)])
    assert "metaforge_run_end of Clumsy" in caught.value.__notes__[0]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["outcome"] == "failed"


class Facts:
    """Gives facts to record, one under a name that the status has too."""

    @hookimpl
    def metaforge_run_facts(self) -> Mapping[str, str]:
        return {"outcome": "splendid", "tracker": "http://here"}


def test_facts_of_hooks_are_recorded_apart(tmp_path: Path) -> None:
    trained(tmp_path / "run", hooks=[Facts()])
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["outcome"] == "finished"
    assert status["facts"] == {"outcome": "splendid", "tracker": "http://here"}


class Interrupt:
    """Presses Ctrl-C at a step."""

    @hookimpl
    def metaforge_before_step(self, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_it_has_and_reports_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", hooks=[Interrupt()])
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"], status["steps"]) == ("stopped", 130, 3)
    assert metaforge.load(tmp_path / "run").summary["steps"] == 3
    assert "stopped" in (tmp_path / "run" / "report.md").read_text()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_validation_is_recorded_at_its_step_and_a_stopped_run_to_its_end(tmp_path: Path) -> None:
    settings = {"train": {"validate_every": 3, "validate_tasks": 4, "log_every": 100}}
    run = trained(tmp_path / "run", steps=9, hooks=[Watch(stop_at=5)], settings=settings)
    rows = rows_of(run.folder)
    assert [row["step"] for row in rows] == [3, 5]
    assert {"val_score", "val_score_ci"} <= rows[0].keys()
    assert "val_score" not in rows[1]
    assert run.summary["outcome"] == "stopped"


def test_a_prediction_that_is_not_finite_is_no_validation_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = episode_scores.score_tasks

    def spoilt(*arguments: Any, **options: Any) -> Any:
        # The score stays what it was, as an accuracy of predictions that are not finite would.
        found = original(*arguments, **options)
        return found._replace(predictions=found.predictions.index_fill(0, torch.tensor([1]), torch.nan))

    monkeypatch.setattr(episode_scores, "score_tasks", spoilt)
    settings = {"train": {"validate_every": 2, "validate_tasks": 3}}
    run = trained(tmp_path / "run", steps=2, settings=settings)
    assert rows_of(run.folder)[0]["val_score"] is None


@pytest.mark.parametrize("plan", ["loop", "vmap"])
def test_validation_obeys_the_plan(tmp_path: Path, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[str] = []
    original = episode_scores.score_tasks

    def spy(*arguments: Any, **options: Any) -> Any:
        plans.append(options["plan"])
        return original(*arguments, **options)

    monkeypatch.setattr(episode_scores, "score_tasks", spy)
    settings = {"train": {"validate_every": 2, "validate_tasks": 5}, "engine": {"plan": plan, "chunk": 2}}
    run = trained(tmp_path / "run", steps=2, settings=settings)
    assert plans == [plan] * 3
    environment = json.loads((run.folder / "env.json").read_text())
    assert (environment["plan"], environment["chunk"]) == (plan, 2)


def test_one_task_is_no_validation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.validate_tasks is 1"):
        trained(tmp_path / "run", settings={"train": {"validate_tasks": 1}})


def test_the_intervals_of_a_run_are_those_of_evaluation(tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []

    class Collect:
        @hookimpl
        def metaforge_after_eval(self, metrics: Mapping[str, float]) -> None:
            seen.append(metrics)

    settings = {"train": {"validate_every": 1, "validate_tasks": 4}, "evaluate": {"seed": 9}}
    run = trained(tmp_path / "run", steps=1, settings=settings, hooks=[Collect()])
    learner, scores = run.learner(run.spec("val")), []
    for index in range(4):
        task = run.task(index, split="val", seed=9)
        error = learner.predict(run.values, learner.adapt(run.values, task.support), task.query.x) - task.query.y
        scores.append(float(error.square().mean()))
    expected = mean_and_ci(scores)
    assert seen[0]["score"] == pytest.approx(expected["mean"], rel=1e-5)
    assert seen[0]["score_ci"] == pytest.approx(expected["ci"], rel=1e-4)


class Mute(Learner):
    """Learns a line and gives no score; its own figure is not always a number."""

    Config = Options
    tags = Tags(kinds=frozenset({"regression"}))

    def __init__(self, config: Any, parts: Any) -> None: ...

    def init(self, key: Key) -> Params:
        return {"slope": torch.zeros(())}

    def adapt(self, values: Params, support: Any, *, steps: Any = None, key: Any = None) -> Any:
        return {}

    def predict(self, values: Params, fast: Any, x: Any, *, key: Any = None) -> Any:
        return values["slope"] * x

    def loss(self, values: Params, task: Task, key: Key) -> Any:
        loss = (self.predict(values, {}, task.query.x) - task.query.y).square().mean()
        return loss, Aux({"odd": loss.detach() * torch.nan})


def test_a_learner_without_a_score_shows_none(tmp_path: Path) -> None:
    registry = scan().including("learner", "mute", Mute)
    run = metaforge.train("mute", "sinusoid", steps=2, tasks=2, out=tmp_path / "run", registry=registry)
    (row,) = rows_of(run.folder)
    assert {"score", "score_ci"}.isdisjoint(row)
    assert row["loss"] > 0
    assert row["odd"] is None
    assert "score" not in run.summary
    assert (run.folder / "pictures" / "training.png").is_file()


class Born(Mute):
    """Begins with a value that is no number."""

    def init(self, key: Key) -> Params:
        return {"slope": torch.tensor(torch.nan)}


def test_initial_values_that_are_not_finite_are_told_with_what_to_do(tmp_path: Path) -> None:
    registry = scan().including("learner", "born", Born)
    with pytest.raises(DivergedError, match="The initial value 'slope' is not finite") as caught:
        metaforge.train("born", "sinusoid", steps=2, out=tmp_path / "run", registry=registry)
    assert "learner's options" in caught.value.remedy


class Poisoned(torch.optim.SGD):
    """Steps to a place that is not finite, at its third step."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        super().step(closure)
        if self.count == 3:
            self.param_groups[0]["params"][0].data.flatten()[0] = torch.inf


def test_values_that_the_last_step_spoilt_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "metaforge.runs.outer_optimizer._optimizer_for", lambda config, leaves: Poisoned(leaves, lr=1e-3)
    )
    with pytest.raises(DivergedError, match=r"The value 'model\.\S+' is no longer finite after outer step 3") as caught:
        trained(tmp_path / "run", steps=3)
    assert "training episodes 6 to 8" in caught.value.where
    assert "the state after step 2 is saved" in caught.value.remedy
    loaded = metaforge.load(tmp_path / "run")
    assert loaded.summary["steps"] == 2
    assert all(bool(value.isfinite().all()) for value in loaded.values.values())
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 6


def test_a_score_that_is_not_finite_does_not_cost_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = training.training_metrics
    monkeypatch.setattr(training, "training_metrics", lambda *state: figures(*state) | {"score": math.nan})
    metaforge.train("maml", "sinusoid", steps=1, tasks=2, out=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["score"]) == ("finished", None)


def test_an_outer_rate_beyond_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lr"):
        trained(tmp_path / "run", lr=1e30)


@pytest.mark.parametrize(
    ("settings", "error", "where"),
    [
        ({"evaluate": {"split": "tset"}}, ConfigError, r"evaluate\.split"),
        ({"evaluate": {"shots": [1, 40]}}, DataError, r"evaluate\.split"),
        ({"train": {"shots": 1, "queries": 1, "validate_every": 5}, "task": {"shots": 40}}, DataError, "'val' split"),
    ],
)
def test_what_follows_a_training_is_checked_before_it(
    tmp_path: Path, settings: Any, error: type[Exception], where: str
) -> None:
    small = {"name": "glyphs", "train": 60, "val": 10, "test": 10}
    with pytest.raises(error, match=where):
        metaforge.train("protonet", small, steps=1, settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_tasks_that_the_data_cannot_make_are_told_by_their_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training \(train\.ways, train\.shots, train\.queries\)"):
        metaforge.train("protonet", {"name": "glyphs", "train": 20}, steps=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ways_of_training_must_fit_a_learner_with_fixed_outputs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one output per class"):
        metaforge.train("maml", "glyphs", steps=1, settings={"train": {"ways": 7}}, out=tmp_path / "run")


def test_a_dry_run_tries_everything_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    registry, watch = scan(), Watch()
    values = {"learner": "maml", "dataset": "sinusoid", "train": {"validate_every": 50}}
    run = run_training(resolve([Layer("test", values)], registry), dry_run=True, hooks=[watch])
    assert run.summary["steps"] == 1
    assert run.folder is None
    assert watch.seen == ["start", "step 1", "saved 1", "eval val", "finished"]
    assert list(tmp_path.iterdir()) == []
    assert run.evaluate(tasks=3)["pictures"] == []
    assert list(tmp_path.iterdir()) == []
