"""How a run ends: what is recorded, and which error is raised if several things fail."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from torch import nn
from typer.testing import Result

import metaforge
from failing_learners import Failing
from fake_commands import run_command
from metaforge import hookimpl
from metaforge.authoring import Hook, Options, RunInfo
from metaforge.errors import DataError, PluginError, StorageError, exit_code
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.ending import Ending
from metaforge.runs.folder import RunFolder, record_failure
from metaforge.runs.hook_calls import hook_manager
from metaforge.system.signals import Interrupted
from metaforge.testing.toy import ToyClasses, ToyDescent, ToyNet
from quick_runs import QUICK, Watch, trained


def test_a_run_that_fails_on_a_full_disk_draws_no_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 57_344})
    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="57,344 bytes are free"):
        trained(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 8
    assert list((tmp_path / "run" / "pictures").iterdir()) == []
    assert not (tmp_path / "run" / "report.md").exists()


class Clumsy:
    """Breaks when the run has ended."""

    @hookimpl
    def metaforge_run_end(self) -> None:
        raise ValueError("too late")


def test_all_hooks_are_called_at_the_end_even_if_one_of_them_fails(tmp_path: Path) -> None:
    first, last = Watch(), Watch()
    with pytest.raises(PluginError, match="metaforge_run_end of Clumsy"):
        trained(tmp_path / "run", hooks=[first, Clumsy(), last])
    assert first.seen[-1] == last.seen[-1] == "finished"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"], status["steps"]) == ("finished", 4, 6)


def test_the_first_error_is_raised(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="metaforge_after_step of Watch") as caught:
        trained(tmp_path / "run", hooks=[Clumsy(), Watch(fail_at=1)])
    assert "metaforge_run_end of Clumsy" in caught.value.__notes__[0]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["outcome"] == "failed"


class Interrupt:
    """Presses Ctrl-C at a step."""

    @hookimpl
    def metaforge_before_step(self, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt


def test_an_interrupted_run_is_saved_and_reported(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", hooks=[Interrupt()])
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"], status["steps"]) == ("stopped", 130, 3)
    assert metaforge.load(tmp_path / "run").summary["steps"] == 3
    assert "stopped" in (tmp_path / "run" / "report.md").read_text()


class Damage:
    """Damages the run folder before the last step."""

    def __init__(self, damage: Callable[[Path], object]) -> None:
        self.damage = damage

    @hookimpl
    def metaforge_before_step(self, run: RunInfo, step: int) -> None:
        if step == 6:
            assert run.folder is not None
            self.damage(run.folder)


def replace_pictures(folder: Path) -> None:
    (folder / "pictures").rmdir()
    (folder / "pictures").write_text("no folder")


DAMAGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "metrics": (lambda folder: (folder / "metrics.jsonl").write_text("[1, 2\n"), 3),
    "metrics of another encoding": (lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\n"), 3),
    "pictures": (replace_pictures, 8),
    "report": (lambda folder: (folder / "report.md").mkdir(), 8),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_status_has_the_exit_code_of_a_command_whose_report_fails(tmp_path: Path, name: str) -> None:
    damage, code = DAMAGES[name]
    with pytest.raises(Exception, match=r".") as caught:
        trained(tmp_path / "run", hooks=[Damage(damage)])
    assert exit_code(caught.value) == code
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("finished", code)
    assert status["error"] == str(caught.value)


class Listing(Hook):
    """Has a state that is no dictionary from step 3 on."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.step = 0

    @hookimpl
    def metaforge_before_step(self, step: int) -> None:
        self.step = step

    def state(self) -> Any:
        return {"step": self.step} if self.step < 3 else [self.step]

    def restore(self, state: Any) -> None:
        self.step = state["step"]


@pytest.mark.parametrize(("every", "step"), [(1, 3), (100, 6)])
def test_a_state_of_a_hook_that_cannot_be_saved_does_not_lose_the_weights(
    tmp_path: Path, every: int, step: int
) -> None:
    registry = scan().with_plugin("hook", "listing", Listing)
    settings = {**QUICK["settings"], "hooks": {"listing": {}}, "checkpoint": {"every": every}}
    with pytest.raises(PluginError, match="The state of the hook 'listing' cannot be saved"):
        trained(tmp_path / "run", settings=settings, registry=registry)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"], status["steps"]) == ("failed", 4, step)
    saved = checkpoint.load_latest(tmp_path / "run" / "ckpt")[0]
    assert saved.step == step
    assert saved.facts["hooks"] == {}
    assert saved.facts["inexact"] == [f"hooks.listing: its state could not be saved (after step {step})"]


class Recorder:
    """Stands for a run folder: notes how the run ended, and whether its lock was released."""

    def __init__(self) -> None:
        self.statuses: list[tuple[str, str]] = []
        self.closed = False

    def ended(self, outcome: str, error: BaseException | None, facts: object) -> None:
        self.statuses.append((outcome, type(error).__name__))

    def close(self) -> None:
        self.closed = True


def end(body: Callable[[Ending], None], *hooks: object, report: Any = None) -> Recorder:
    """Run a body inside an ending; the recorder has what was written, whatever is raised."""
    folder: Any = Recorder()
    try:
        with Ending(folder, hook_manager(hooks), RunInfo(None, {}, "classification"), {}, report) as ending:
            body(ending)
    except BaseException as error:
        error.recorder = folder  # type: ignore[attr-defined]
        raise
    return cast(Recorder, folder)


def finish(ending: Ending) -> None:
    ending.outcome = "finished"


def fail(ending: Ending) -> None:
    raise ZeroDivisionError("in the training")


def test_an_ending_records_the_outcome_then_reports_it_and_releases_the_lock() -> None:
    reported: list[str] = []
    folder = end(finish, report=reported.append)
    assert folder.statuses == [("finished", "NoneType")]
    assert reported == ["finished"]
    assert folder.closed


def test_an_error_of_the_training_is_raised_as_it_is() -> None:
    reported: list[str] = []
    with pytest.raises(ZeroDivisionError, match="in the training") as caught:
        end(fail, report=reported.append)
    folder = caught.value.recorder  # type: ignore[attr-defined]
    assert folder.statuses == [("failed", "ZeroDivisionError")]
    assert reported == ["failed"]
    assert folder.closed


def test_an_error_while_reporting_is_raised_only_if_the_training_succeeded() -> None:
    def report(outcome: str) -> None:
        raise OSError("no plot")

    with pytest.raises(OSError, match="no plot") as only:
        end(finish, report=report)
    folder = only.value.recorder  # type: ignore[attr-defined]
    assert folder.closed
    assert folder.statuses == [("finished", "NoneType"), ("finished", "OSError")]
    with pytest.raises(ZeroDivisionError) as first:
        end(fail, report=report)
    assert first.value.__notes__ == ["The end of the run failed too: no plot"]


def test_an_error_of_a_hook_at_the_end_becomes_the_exit_code() -> None:
    with pytest.raises(PluginError, match="metaforge_run_end of Clumsy") as caught:
        end(finish, Clumsy())
    folder = caught.value.recorder  # type: ignore[attr-defined]
    assert folder.statuses == [("finished", "NoneType"), ("finished", "PluginError")]
    assert folder.closed


def test_a_signal_during_the_report_is_recorded_with_its_exit_code() -> None:
    def report(outcome: str) -> None:
        raise Interrupted(signal.SIGTERM)

    watch = Watch()
    with pytest.raises(Interrupted) as caught:
        end(finish, watch, report=report)
    folder = caught.value.recorder  # type: ignore[attr-defined]
    assert folder.statuses == [("finished", "NoneType"), ("finished", "Interrupted")]
    assert folder.closed
    assert watch.seen == ["finished"]


def test_other_ranks_end_without_a_folder() -> None:
    with Ending(None, hook_manager([]), RunInfo(None, {}, "classification"), {}, None) as ending:
        ending.outcome = "finished"


def test_a_run_that_cannot_start_ends_like_any_other_that_fails(tmp_path: Path) -> None:
    watch = Watch()
    # Prototypical networks without a parameter: the outer optimiser refuses to be built.
    with pytest.raises(ValueError, match="empty parameter list"):
        metaforge.train("protonet", "glyphs", backbone=nn.Flatten(), steps=1, out=tmp_path / "run", hooks=[watch])
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("failed", 1)
    assert watch.seen[-1] == "failed"
    assert (tmp_path / "run" / "run.lock").read_bytes() == b""


def test_a_failed_record_is_raised_before_an_error_of_a_hook() -> None:
    def report(outcome: str) -> None:
        raise StorageError("no plot")

    with pytest.raises(StorageError, match="no plot") as caught:
        end(finish, Clumsy(), report=report)
    assert "metaforge_run_end of Clumsy" in caught.value.__notes__[0]


def failing_registry() -> Registry:
    registry = scan().with_plugin("learner", "failing", Failing).with_plugin("dataset", "toy", ToyClasses)
    return registry.with_plugin("backbone", "net", ToyNet).with_plugin("adapter", "descent", ToyDescent)


def train_and_evaluate(out: Path) -> Result:
    """Run `metaforge train --evaluate` with a learner whose own test metrics raise an exception."""
    words = f"train -l failing -d toy --backbone net --adapter descent --steps 1 --out {out} --evaluate --json"
    for setting in (
        "engine.threads=1",
        "learner.place=measure",
        "learner.fault=AssertionError",
        "train.tasks=2",
        "evaluate.tasks=2",
    ):
        words += f" --set {setting}"
    return run_command(words)


def test_a_status_has_the_exit_code_of_an_evaluation_after_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = failing_registry()
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: registry)
    done = train_and_evaluate(tmp_path / "run")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "The learner 'failing' of python raised AssertionError in its evaluation" in done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"], status["steps"]) == ("finished", 4, 1)
    assert status["error"].startswith("The learner 'failing' of python raised AssertionError in its evaluation")


def test_the_status_of_a_run_that_is_in_use_or_unreadable_stays_as_it_is(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", config="", command="train", environment={})
    folder.status("finished", exit_code=0)
    before = (tmp_path / "run" / "status.json").read_bytes()
    error = DataError("No test split.")
    record_failure(tmp_path / "run", error)
    assert (tmp_path / "run" / "status.json").read_bytes() == before
    assert "The status of the run could not be written: " in error.__notes__[0]
    folder.close()
    (tmp_path / "run" / "status.json").write_text("{")
    record_failure(tmp_path / "run", error)
    assert "status.json cannot be read" in error.__notes__[1]
    folder.status("finished", exit_code=0)
    record_failure(tmp_path / "run", Interrupted(signal.SIGTERM))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("finished", 143)
