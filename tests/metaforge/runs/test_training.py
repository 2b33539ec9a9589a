"""The outer loop: the run folder, reproducibility, hooks, validation and errors."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import metaforge
from metaforge import hookimpl
from metaforge.authoring.progress import training_progress
from metaforge.authoring.protocols import SHARE, STEP, Aux, Key, Learner, Options, Params, Tags, Task
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError, DivergedError, PluginError, StorageError
from metaforge.registry.scan import scan
from metaforge.results import episode_scores
from metaforge.runs.resume import configuration
from metaforge.runs.training import run_training
from metaforge.testing.toy import ToyClasses, ToyLearner
from quick_runs import Watch, rows_of, trained


def test_the_run_folder_is_a_complete_record(tmp_path: Path) -> None:
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


def test_a_diverging_run_stops_and_keeps_the_weights_before_the_step(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="no longer finite"):
        trained(tmp_path / "run", adapters={"sgd": {"lr": 1e30}})
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("failed", 6)
    loaded = metaforge.load(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in loaded.values.values())


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(StorageError, match="already exists"):
        trained(tmp_path / "run")
    assert [one.name for one in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_the_budget_ends_a_run(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", steps=1_000_000, budget=0.3)
    assert 1 <= run.summary["steps"] < 1_000_000
    assert run.summary["outcome"] == "finished"


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


class Facts:
    """Gives facts to record, one under a name that the status has too."""

    @hookimpl
    def metaforge_run_facts(self) -> Mapping[str, str]:
        return {"outcome": "splendid", "tracker": "http://here"}


def test_facts_of_hooks_are_recorded_separately(tmp_path: Path) -> None:
    trained(tmp_path / "run", hooks=[Facts()])
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["outcome"] == "finished"
    assert status["facts"] == {"outcome": "splendid", "tracker": "http://here"}


def test_validation_is_recorded_at_its_step_and_a_stopped_run_to_its_end(tmp_path: Path) -> None:
    settings = {"train": {"validate_every": 3, "validate_tasks": 4, "log_every": 100}}
    run = trained(tmp_path / "run", steps=9, hooks=[Watch(stop_at=5)], settings=settings)
    rows = rows_of(run.folder)
    assert [row["step"] for row in rows] == [3, 5]
    assert {"val_score", "val_score_ci"} <= rows[0].keys()
    assert "val_score" not in rows[1]
    assert run.summary["outcome"] == "stopped"


def test_a_non_finite_prediction_gives_no_validation_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_validation_uses_the_configured_plan(tmp_path: Path, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_validation_on_one_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.validate_tasks is 1"):
        trained(tmp_path / "run", settings={"train": {"validate_tasks": 1}})


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


def test_a_learner_without_a_score_records_none(tmp_path: Path) -> None:
    registry = scan().with_plugin("learner", "mute", Mute)
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


def test_non_finite_initial_values_are_refused_with_a_remedy(tmp_path: Path) -> None:
    registry = scan().with_plugin("learner", "born", Born)
    with pytest.raises(DivergedError, match="The initial value 'slope' is not finite") as caught:
        metaforge.train("born", "sinusoid", steps=2, out=tmp_path / "run", registry=registry)
    assert "options of the learner" in caught.value.remedy


class Poisoned(torch.optim.SGD):
    """Steps to a place that is not finite, at its third step."""

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        group["count"] = group.get("count", 0) + 1
        super().step(closure)
        if group["count"] == 3:
            group["params"][0].data.flatten()[0] = torch.inf


def test_values_that_the_last_step_made_non_finite_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaforge.runs.outer_optimizer.torch_optimizer", lambda plugin, groups: Poisoned(groups))
    with pytest.raises(DivergedError, match=r"The value 'model\.\S+' is no longer finite after outer step 3") as caught:
        trained(tmp_path / "run", steps=3)
    assert "training episodes 6 to 8" in caught.value.where
    assert "the state after step 2 is saved" in caught.value.remedy
    loaded = metaforge.load(tmp_path / "run")
    assert loaded.summary["steps"] == 2
    assert all(bool(value.isfinite().all()) for value in loaded.values.values())
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 6


def test_an_absurd_outer_learning_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lr"):
        trained(tmp_path / "run", lr=1e30)


def test_a_dry_run_tries_everything_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_size_of_a_checkpoint_does_not_grow_with_the_steps_between_records(tmp_path: Path) -> None:
    settings = {"train": {"log_every": 100_000}, "checkpoint": {"every": 1, "keep": 100}, "engine": {"threads": 1}}
    trained(tmp_path / "run", steps=30, tasks=32, settings=settings)
    sizes = [(tmp_path / "run" / "ckpt" / f"step-{step:07d}" / "state.json").stat().st_size for step in (2, 30)]
    # Each step adds a norm of the meta-gradient, of which the last 101 are kept.
    assert sizes[1] - sizes[0] < 28 * 30
    assert rows_of(tmp_path / "run")[-1]["score_ci"] > 0


class _JumpingClock:
    """A hook that sets the clock of the machine back by a year before every step, as programs see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.real, self.jumps = monkeypatch, (time.time, time.strftime), 0

    @hookimpl
    def metaforge_before_step(self) -> None:
        self.jumps += 1
        back = 365 * 86400 * self.jumps
        now, text = self.real
        self.monkeypatch.setattr(time, "time", lambda: now() - back)
        self.monkeypatch.setattr(time, "strftime", lambda form: text(form, time.localtime(now() - back)))


def test_a_clock_that_jumps_backwards_changes_only_the_time_stamps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"train": {"log_every": 1}, "checkpoint": {"interval": 0.0}, "engine": {"threads": 1}}
    plain = trained(tmp_path / "plain", settings=settings)
    run = trained(tmp_path / "jumping", settings=settings, hooks=[_JumpingClock(monkeypatch)])
    elapsed = [row["elapsed"] for row in rows_of(tmp_path / "jumping")]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] > 0
    assert all(row["eta"] >= 0 and row["tasks_per_second"] > 0 for row in rows_of(tmp_path / "jumping"))
    assert all(torch.equal(run.values[name], plain.values[name]) for name in plain.values)
    status = json.loads((tmp_path / "jumping" / "status.json").read_text())
    assert (status["outcome"], status["steps"], status["exit_code"]) == ("finished", 6, 0)


class Following(ToyLearner):
    """Records where the training stands in every loss and prediction."""

    seen: ClassVar[list[tuple[str, float, float]]] = []

    def init(self, key: Key) -> Params:
        return super().init(key) | training_progress()

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        self.seen.append(("loss", float(values[STEP]), float(values[SHARE])))
        return super().loss(values, task, key)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        self.seen.append(("predict", float(values[STEP]), float(values[SHARE])))
        return super().predict(values, fast, x, key=key)


FOLLOWING = scan().with_plugin("learner", "following", Following).with_plugin("dataset", "toy", ToyClasses)


def followed(out: Path, **train: Any) -> Any:
    """Train the learner above, and return the run; the calls that it saw in the training are in `seen`."""
    settings = {"engine": {"threads": 1, "plan": "fold"}, "train": {"tasks": 1, "log_every": 1} | train}
    Following.seen.clear()
    options: dict[str, Any] = {"backbone": "mlp", "adapters": ["sgd"], "registry": FOLLOWING}
    run = metaforge.train("following", "toy", settings=settings, out=out, **options)
    # One prediction and one loss are computed before the first step.
    del Following.seen[:2]
    return run


def test_a_learner_sees_the_step_and_the_share_of_the_training(tmp_path: Path) -> None:
    run = followed(tmp_path / "run", steps=4, validate_every=4, validate_tasks=2)
    losses = [("loss", step, step / 4) for step in range(4)]
    assert Following.seen[:5] == [*losses, ("predict", 4, 1)]
    assert (run.values[STEP], run.values[SHARE]) == (4, 1)
    Following.seen.clear()
    loaded = metaforge.load(tmp_path / "run", registry=FOLLOWING)
    loaded.evaluate(tasks=2)
    assert set(Following.seen) == {("predict", 4, 1)}


def test_a_training_that_is_made_longer_counts_its_share_anew(tmp_path: Path) -> None:
    followed(tmp_path / "run", steps=2)
    Following.seen.clear()
    longer = configuration(tmp_path / "run", [Layer("keyword", {"train": {"steps": 8}})], FOLLOWING)
    run_training(longer, folder=tmp_path / "run", resuming=True)
    assert [seen for seen in Following.seen if seen[0] == "loss"][1:] == [("loss", n, n / 8) for n in range(2, 8)]


def test_with_a_time_budget_the_share_follows_the_clock(tmp_path: Path) -> None:
    run = followed(tmp_path / "run", steps=1_000_000, budget=0.4)
    count = run.summary["steps"]
    elapsed = [0.0, *(row["elapsed"] for row in rows_of(tmp_path / "run"))]
    shares = [share for name, _, share in Following.seen if name == "loss"]
    assert len(shares) == count > 1
    assert shares == pytest.approx([seconds / 0.4 for seconds in elapsed[:count]], abs=1e-3)
    assert run.values[SHARE] == 1


def test_a_skipped_step_counts_as_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Following.loss

    def spoilt(self: Any, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = original(self, values, task, key)
        return (loss * torch.nan if Following.seen[-1][1] == 1 else loss), aux

    monkeypatch.setattr(Following, "loss", spoilt)
    run = followed(tmp_path / "run", steps=3, on_nonfinite="skip")
    assert run.summary["skipped"] == [2]
    assert [seen[1] for seen in Following.seen if seen[0] == "loss"] == [0, 1, 2]
    assert run.values[STEP] == 3
