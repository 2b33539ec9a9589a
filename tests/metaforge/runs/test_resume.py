"""Resuming a run: bit-exact where nothing changed; differences are reported or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import metaforge
from metaforge.cli.app import app
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import CheckpointError, ConfigError, PluginError, RunLockedError
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.resume import configuration, differences
from metaforge.runs.run import Run
from metaforge.runs.training import run_training
from metaforge.system.lock import RunLock
from saved_checkpoints import rewritten
from tests.reliability.interruptions import StopAfter

CLOCK = {"elapsed", "eta", "tasks_per_second"}
SETTINGS: dict[str, Any] = {
    "train": {"log_every": 3, "validate_every": 4, "validate_tasks": 4},
    "engine": {"threads": 1},
    "hooks": {"early-stop": {"patience": 50}},
}


def begun(out: Path, *, stop: int | None = None, steps: int = 10, **more: Any) -> None:
    hooks = [] if stop is None else [StopAfter(stop)]
    try:
        metaforge.train("maml", "sinusoid", steps=steps, tasks=3, settings=SETTINGS, out=out, hooks=hooks, **more)
    except KeyboardInterrupt:
        assert stop is not None


def resumed(folder: Path, settings: Mapping[str, Any] | None = None, **more: Any) -> Run:
    registry = scan()
    config = configuration(folder, [Layer("keyword", settings or {})], registry)
    return run_training(config, folder=folder, resuming=True, **more)


def kept(folder: Path) -> tuple[checkpoint.Checkpoint, list[dict[str, float]]]:
    """Return the last checkpoint of a run, and its metrics without what the clock says."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    rows = [{name: value for name, value in json.loads(line).items() if name not in CLOCK} for line in lines]
    return checkpoint.load_latest(folder / "ckpt")[0], rows


def assert_equal_runs(one: Path, two: Path) -> None:
    (ours, rows), (theirs, others) = kept(one), kept(two)
    assert ours.step == theirs.step
    assert rows == others
    assert ours.values.keys() == theirs.values.keys()
    assert ours.training.keys() == theirs.training.keys()
    assert all(torch.equal(ours.values[name], theirs.values[name]) for name in ours.values)
    assert all(torch.equal(ours.training[name], theirs.training[name]) for name in ours.training)
    same = ("window", "norms", "skipped", "best", "hooks", "inexact")
    assert [ours.facts[name] for name in same] == [theirs.facts[name] for name in same]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    begun(folder)
    return folder


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(whole: Path, tmp_path: Path, stop: int) -> None:
    begun(tmp_path / "run", stop=stop)
    assert kept(tmp_path / "run")[0].step == stop
    run = resumed(tmp_path / "run")
    assert run.summary["resumed"] == {"step": stop, "exact": True, "differences": [], "damaged": []}
    assert_equal_runs(tmp_path / "run", whole)
    assert (tmp_path / "run" / "command.txt").read_text().count("\n") == 2


def test_metrics_that_an_older_checkpoint_lists_task_by_task_are_continued(whole: Path, tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    path = tmp_path / "run" / "ckpt" / "step-0000004"
    facts = json.loads((path / "state.json").read_text())
    facts["window"] = {name: 3 * [metric["total"] / 3] for name, metric in facts["window"].items()}
    rewritten(path, "state.json", json.dumps(facts).encode())
    assert resumed(tmp_path / "run").summary["resumed"]["exact"]
    rows, expected = kept(tmp_path / "run")[1], kept(whole)[1]
    assert [row["loss"] for row in rows] == [pytest.approx(row["loss"], rel=1e-12) for row in expected]


def test_a_run_that_is_resumed_over_and_over_keeps_a_bounded_record(tmp_path: Path) -> None:
    metaforge.train("maml", "sinusoid", steps=1, tasks=2, out=tmp_path / "run", settings={"engine": {"threads": 1}})
    path, env = tmp_path / "run" / "ckpt" / "step-0000001", tmp_path / "run" / "env.json"
    facts = json.loads((path / "state.json").read_text())
    rewritten(path, "state.json", json.dumps(facts | {"inexact": [f"change {i}" for i in range(5000)]}).encode())
    env.write_text(json.dumps(json.loads(env.read_text()) | {"resumed": [{"step": 1}] * 5000}))
    run = resumed(tmp_path / "run", {"train": {"steps": 2}})
    assert run.summary["resumed"]["exact"] is False
    assert len(kept(tmp_path / "run")[0].facts["inexact"]) <= 200
    assert len(json.loads(env.read_text())["resumed"]) <= 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner": "protonet"}, "trained with the learner 'maml' and cannot be resumed with 'protonet'"),
        ({"dataset": {"name": "glyphs"}}, "trained with the dataset 'sinusoid'"),
        ({"learner": 3}, "learner is 3, not a table"),
        ({"dataset": {"name": 3}}, "dataset.name is 3, not a string"),
    ],
)
def test_another_learner_or_data_set_is_refused_in_every_notation(
    whole: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configuration(whole, [Layer("--set", settings)], scan())


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole: Path, tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=2)
    for path in (tmp_path / "run" / "ckpt").iterdir():
        path.unlink() if path.is_file() else [one.unlink() for one in path.iterdir()] and path.rmdir()
    assert resumed(tmp_path / "run").summary["steps"] == 10
    assert_equal_runs(tmp_path / "run", whole)


def test_records_after_the_checkpoint_and_half_a_line_are_dropped(whole: Path, tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=5)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    resumed(tmp_path / "run")
    assert_equal_runs(tmp_path / "run", whole)


def test_a_damaged_last_checkpoint_is_reported_and_the_previous_one_is_used(whole: Path, tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=7)
    (tmp_path / "run" / "ckpt" / "step-0000007" / "model.safetensors").write_bytes(b"")
    run = resumed(tmp_path / "run")
    assert run.summary["resumed"]["step"] == 4
    assert "model.safetensors" in run.summary["resumed"]["damaged"][0]
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (lambda text: text.replace('{"step": 3,', '{"ste', 1), "damaged lines skipped: 1 (line 1: "),
        (lambda text: text.replace('{"step": 6,', "\0", 1), "damaged lines skipped: 1 (line 3: "),
        (lambda text: text + '\0\0\n{"step": 9}\n', ""),
        (None, "the file is missing"),
    ],
)
def test_lost_records_are_reported_and_make_the_run_inexact(
    tmp_path: Path, lose: Callable[[str], str] | None, told: str
) -> None:
    begun(tmp_path / "run", stop=6)
    metrics = tmp_path / "run" / "metrics.jsonl"
    if lose is None:
        metrics.unlink()
    else:
        metrics.write_text(lose(metrics.read_text()))
    facts = resumed(tmp_path / "run").summary["resumed"]
    assert (facts["step"], facts["exact"]) == (6, not told)
    assert told in "".join(facts["differences"])


def test_a_run_without_env_json_is_resumed_with_a_warning(whole: Path, tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    (tmp_path / "run" / "env.json").unlink()
    facts = resumed(tmp_path / "run").summary["resumed"]
    assert (facts["exact"], facts["damaged"]) == (True, ["There is no env.json: a new one is written."])
    assert_equal_runs(tmp_path / "run", whole)


def test_a_finished_run_has_nothing_to_do_and_keeps_its_metrics(tmp_path: Path) -> None:
    begun(tmp_path / "run", steps=5)
    before = json.loads((tmp_path / "run" / "status.json").read_text())
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    run = resumed(tmp_path / "run")
    assert "Nothing is left to do: the run has taken 5 steps" in run.summary["resumed"]["note"]
    after = json.loads((tmp_path / "run" / "status.json").read_text())
    for name in ("steps", "seconds", "loss", "score", "tasks_per_second", "outcome"):
        assert after[name] == before[name]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    config = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match="Nothing is left to do") as caught:
        resumed(tmp_path / "run", {"train": {"steps": 3}})
    assert "--steps larger than 5" in caught.value.remedy
    assert (tmp_path / "run" / "config.toml").read_bytes() == config
    with pytest.raises(ConfigError, match=r"--budget larger than [\d.e-]+s"):
        resumed(tmp_path / "run", {"train": {"budget": 1e-6}})


def test_a_lengthened_run_equals_one_of_that_length(whole: Path, tmp_path: Path) -> None:
    # Its last record, of step 5, came before its time: those of 4 and 6 have theirs.
    begun(tmp_path / "run", steps=5)
    assert resumed(tmp_path / "run", {"train": {"steps": 10}}).summary["resumed"]["exact"]
    assert_equal_runs(tmp_path / "run", whole)
    assert "steps = 10" in (tmp_path / "run" / "config.toml").read_text()


def test_a_changed_setting_is_reported_and_makes_the_run_inexact(tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    run = resumed(tmp_path / "run", {"train": {"lr": 0.01}, "evaluate": {"tasks": 9}})
    assert run.summary["resumed"]["differences"] == ["train.lr: 0.001 -> 0.01"]
    assert not run.summary["resumed"]["exact"]
    told = json.loads((tmp_path / "run" / "env.json").read_text())["resumed"]
    assert [(one["step"], one["exact"]) for one in told] == [(4, False)]


def test_an_inexact_run_remains_inexact(tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path / "run", {"train": {"lr": 0.01}}, hooks=[StopAfter(7)])
    run = resumed(tmp_path / "run")
    assert run.summary["resumed"]["differences"] == ["train.lr: 0.001 -> 0.01 (after step 4)"]
    assert not run.summary["resumed"]["exact"]
    assert not json.loads((tmp_path / "run" / "status.json").read_text())["resumed"]["exact"]
    assert "resumed with this change | train.lr: 0.001 -> 0.01" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(("reduce", "named"), [("fast", ["processes: 1 -> 2"]), ("exact", [])])
def test_the_number_of_processes_matters_unless_sums_are_ordered(reduce: str, named: list[str]) -> None:
    resolved = resolve([Layer("test", {"learner": "maml", "engine": {"reduce": reduce}})], scan())
    saved = {"config": resolved.to_dict(), "environment": {"processes": 1}}
    assert differences(saved, resolved, {"processes": 2}, values=[], accept_plugins=False) == named


def test_a_setting_that_the_checkpoint_does_not_know_is_no_difference_if_it_has_its_default() -> None:
    layers = [Layer("test", {"learner": "maml", "dataset": "sinusoid", "train": {"lr": 0.1}})]
    resolved = resolve(layers, scan())
    config = resolved.to_dict()
    del config["train"]["accumulate"], config["train"]["groups"], config["optimizer"]["eps"], config["task"]["ways"]
    del config["adapters"]["sgd"]
    config["adapters"]["adam"] = {}
    config["train"] |= {"optimizer": config.pop("optimizer")["name"], "schedule": config.pop("schedule")["name"]}
    found = differences({"config": config}, resolved, {}, values=[], accept_plugins=False)
    # A data set's default is not that of the core: what the older version used is not known.
    assert found == ["task.ways: 5 -> 1", "adapters.adam: {} -> None", "adapters.sgd.lr: None -> 0.01"]


def test_skipped_steps_are_still_reported_after_a_resume(tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    resaved(tmp_path / "run", skipped=[2])
    assert resumed(tmp_path / "run").summary["skipped"] == [2]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["skipped"] == [2]


def test_an_evaluation_says_which_checkpoints_cannot_be_used(tmp_path: Path) -> None:
    begun(tmp_path / "run", steps=8)
    (tmp_path / "run" / "ckpt" / "step-0000008" / "state.json").write_text("{}")
    words = ["evaluate", str(tmp_path / "run"), "--tasks", "2", "--no-progress", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "Warning: The checkpoint file state.json cannot be used" in done.stderr
    found = json.loads(done.stdout)
    assert found["step"] == 4
    assert "state.json" in found["damaged"][0]
    assert "cannot be used: the scores are those of outer step 4" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"learner": {"name": "protonet"}}, ConfigError, "trained with the learner 'maml'"),
        ({"dataset": {"name": "glyphs"}}, ConfigError, "trained with the dataset 'sinusoid'"),
        ({"backbone": {"widths": [7]}}, CheckpointError, r"does not belong to this learner: model\S* is \(40, 1\)"),
    ],
)
def test_another_learner_is_refused(tmp_path: Path, settings: Any, error: type[Exception], sentence: str) -> None:
    begun(tmp_path / "run", stop=4)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(error, match=sentence):
        resumed(tmp_path / "run", settings)
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert before == after


def resaved(folder: Path, **facts: Any) -> None:
    """Save the last checkpoint of a run again, with other facts."""
    found, _ = checkpoint.load_latest(folder / "ckpt")
    for path in (folder / "ckpt" / f"step-{found.step:07d}").iterdir():
        path.unlink()
    before = {name: value for name, value in found.facts.items() if name not in ("schema", "step")}
    checkpoint.save(folder / "ckpt", found.step, found.values, found.training, before | facts)


def forged(folder: Path, provenance: str, plugin: str = "learner maml") -> None:
    """Make the checkpoint of a run say that a plugin of it was of another distribution or version."""
    environment = checkpoint.load_latest(folder / "ckpt")[0].facts["environment"]
    environment["plugins"][plugin] = provenance
    resaved(folder, environment=environment)
    kept_environment = json.loads((folder / "env.json").read_text())
    kept_environment["plugins"] = environment["plugins"]
    (folder / "env.json").write_text(json.dumps(kept_environment))


def test_a_plugin_of_another_version_is_refused_unless_accepted(tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    forged(tmp_path / "run", "metaforge 0.0.9")
    with pytest.raises(PluginError, match=r"learner maml: metaforge 0\.0\.9 -> metaforge \d") as caught:
        resumed(tmp_path / "run")
    assert "pip install metaforge==0.0.9)" in caught.value.remedy
    assert "--accept-plugins" in caught.value.remedy
    run = resumed(tmp_path / "run", accept_plugins=True)
    assert run.summary["resumed"]["differences"][0].startswith("learner maml: metaforge 0.0.9")


def test_a_missing_plugin_is_reported_with_its_distribution(tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace('name = "maml"', 'name = "gone"'))
    forged(tmp_path / "run", "metaforge-gone 1.2", "learner gone")
    with pytest.raises(PluginError, match=r"The learner 'gone' of metaforge-gone 1\.2, .* is not installed") as caught:
        resumed(tmp_path / "run")
    assert "metaforge-gone 1.2" in caught.value.where
    assert "pip install metaforge-gone==1.2)" in caught.value.remedy


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    lock = RunLock(tmp_path / "run")
    with pytest.raises(RunLockedError, match=r"process \d+ on"):
        resumed(tmp_path / "run")
    lock.release()
    assert resumed(tmp_path / "run").summary["steps"] == 10


def test_the_command_resumes_and_reports_it(tmp_path: Path) -> None:
    begun(tmp_path / "run", stop=4)
    runner = CliRunner()
    done = runner.invoke(app, ["train", "--resume", str(tmp_path / "run"), "--set", "train.lr=0.01", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["resumed"]["step"] == 4
    assert "resumed after outer step 4, with these changes:\n  train.lr: 0.001 -> 0.01" in done.stderr
    for words in (["--out", "x"], ["--config", str(tmp_path / "run" / "config.toml")], ["--dry-run"]):
        refused = runner.invoke(app, ["train", "--resume", str(tmp_path / "run"), *words])
        assert refused.exit_code == 2
        assert f"--resume and {words[0]} cannot be given together" in refused.stderr
    nowhere = runner.invoke(app, ["train", "--resume", str(tmp_path / "nowhere")])
    assert nowhere.exit_code == 2
    assert "no run folder" in nowhere.stderr
