"""`metaforge train`, `evaluate`, `config` and `data`; workers that compute are replaced by ones that record."""

from __future__ import annotations

import json
import signal
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from typer.testing import CliRunner, Result

from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.protocols import Dataset, Examples, Learner, Options, Task, TaskShape, TaskSpec
from metaforge.cli.app import app
from metaforge.cli.train import _Announcement
from metaforge.errors import DataError, DivergedError
from metaforge.registry.registry import Registry
from metaforge.system.signals import Interrupted

runner = CliRunner()


def command(line: str) -> Result:
    return runner.invoke(app, line.split())


class Guess(Learner):
    """Guesses."""

    class Config(Options):
        courage: float = Field(default=0.5, ge=0, le=1, description="How bold.")

    def __init__(self, config: Any, parts: Any) -> None: ...
    def init(self, key: Any) -> Any: ...
    def adapt(self, values: Any, support: Any, *, steps: Any = None, key: Any = None) -> Any: ...
    def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any: ...
    def loss(self, values: Any, task: Any, key: Any) -> Any: ...


class Dots(Dataset):
    """Dots."""

    class Config(Options):
        size: int = Field(default=2, ge=1, description="Size.")

    kind: ClassVar[Any] = "classification"
    note: ClassVar[str] = "made of dots"

    def __init__(self, config: Any, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        if shape.ways > 9:
            raise DataError("The split has 9 classes.", where=split, remedy="ask for at most 9 ways")
        return TaskSpec("classification", (1, self.config.size, self.config.size), shape.ways, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        self.spec(split, shape)
        part = Examples(torch.full((count, 1), float(first)), torch.zeros(count, 1, dtype=torch.int64))
        return Task(part, part)

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        if split == "val":
            raise DataError("No val split.", where=split, remedy="use another")
        return {"classes": 9}

    @classmethod
    def fetch(cls, root: Path, progress: Any = None) -> list[Path]:
        for done in range(0, 101, 10):
            progress("dots.zip", done, 100)
        return [root / "dots.zip"]


class Calls(list[SimpleNamespace]):
    """What the workers were called with, and what they are to raise."""

    error: BaseException | None = None


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAFORGE_DATA", str(tmp_path / "data"))
    made = Registry([]).with_plugin("learner", "guess", Guess).with_plugin("dataset", "dots", Dots)
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: made)
    found = Calls()

    def run_training(
        resolved: Any,
        *,
        folder: Any,
        command: str,
        dry_run: bool,
        hooks: Any,
        resuming: bool,
        accept_plugins: bool,
    ) -> Any:
        if found.error is not None:
            raise found.error
        found.append(SimpleNamespace(resolved=resolved, folder=folder, command=command, dry_run=dry_run, hooks=hooks))
        return SimpleNamespace(
            folder=None if dry_run else folder or Path("runs/new"),
            summary={"loss": 0.25, "steps": resolved.run.train.steps},
        )

    def load(folder: Path, registry: Any, *, device: str | None = None, which: Any = "latest") -> Any:
        def evaluate(**chosen: Any) -> dict[str, Any]:
            found.append(SimpleNamespace(folder=folder, device=device, **chosen))
            return {"accuracy": {"mean": 0.5}}

        return SimpleNamespace(evaluate=evaluate, summary={"damaged": ["state.json is damaged"]})

    def episode_grid(task: Task, path: Path) -> None:
        found.append(SimpleNamespace(task=task))
        path.write_bytes(b"picture")

    for name, function in [
        ("metaforge.runs.training", run_training),
        ("metaforge.runs.run", load),
        ("metaforge.results.pictures", episode_grid),
    ]:
        module = ModuleType(name)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_train_resolves_the_flags_and_says_what_comes_next(calls: Calls) -> None:
    result = command("train -l guess -d dots --steps 7 --budget 10m --seed 3 --set learner.courage=1 --device cpu")
    assert result.exit_code == 0, result.stderr
    (call,) = calls
    run = call.resolved.run
    assert (run.train.steps, run.train.budget, run.seed, run.device) == (7, 600.0, 3, "cpu")
    assert call.resolved.learner.config.courage == 1
    assert call.folder is None
    assert "Next: metaforge evaluate runs/new" in result.stderr
    assert "loss: 0.25" in result.stdout


def test_train_answers_in_json_and_can_evaluate_at_once(calls: Calls) -> None:
    result = command("train -l guess -d dots --out here/run --evaluate --json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["folder"] == "here/run"
    assert answer["evaluation"] == {"accuracy": {"mean": 0.5}}
    assert calls[1].folder == Path("here/run")


def test_a_dry_run_has_no_folder(calls: Calls) -> None:
    result = command("train -l guess -d dots --dry-run")
    assert result.exit_code == 0, result.stderr
    assert calls[0].folder is None
    assert calls[0].dry_run
    assert "Next" not in result.stderr
    assert result.stdout.startswith("dry run: nothing was written\n")
    assert "folder" not in result.stdout
    assert not Path("runs").exists()
    answer = json.loads(command("train -l guess -d dots --dry-run --json").stdout)
    assert answer == {"dry_run": True, "loss": 0.25, "steps": 1000}


def test_a_file_is_a_layer_below_the_flags(calls: Calls) -> None:
    Path("run.toml").write_text('seed = 5\n[learner]\nname = "guess"\ncourage = 0.1\n[dataset]\nname = "dots"', "utf-8")
    result = command("train -c run.toml --seed 6")
    assert result.exit_code == 0, result.stderr
    assert calls[0].resolved.run.seed == 6
    assert calls[0].resolved.learner.config.courage == 0.1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("train", 2, "No learner is chosen"),
        ("train -l gues", 4, "Did you mean 'guess'?"),
        ("train -l guess -d dts", 4, "Did you mean 'dots'?"),
        ("train -l guess -d dots --set learner.curage=1", 2, "Did you mean 'courage'?"),
        ("train -l guess -d dots --set train.lr=nan", 2, "train.lr is nan"),
        ("train -l guess -d dots --set train.lr", 2, "key=value"),
        ("train -l guess -d dots --budget soon", 2, "not a duration"),
        ("train -l guess -d dots --device gpu", 2, "device is 'gpu'"),
        ("train -l guess --set learner.name=other -d dots", 2, "different values"),
        ("train -l guess -d dots -c missing.toml", 2, "cannot be read"),
        ("train -l guess", 2, "No data set is chosen"),
        ("evaluate nowhere", 2, "no run folder nowhere"),
        ("evaluate . --shots 1,x", 2, "whole numbers"),
        ("evaluate . --ways 0", 2, "ways"),
        ("config -l gues", 4, "Did you mean 'guess'?"),
        ("data inspect dts", 4, "Did you mean 'dots'?"),
        ("data preview dots --out x.png --set task.ways=10", 3, "ask for at most 9 ways"),
        ("data inspect dots --set task.ways=10", 3, "ask for at most 9 ways"),
        ("train --nonsense", 2, "nonsense"),
    ],
)
def test_bad_input_gets_a_sentence_and_an_exit_code(arguments: str, code: int, sentence: str) -> None:
    result = command(arguments)
    assert result.exit_code == code, result.stderr
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DivergedError("The loss is not finite."), 6, "Error: The loss is not finite."),
        (PermissionError(13, "Permission denied", "runs"), 8, "runs cannot be written or read: Permission denied"),
        (OSError(28, "No space left on device", "runs/x"), 8, "No space left"),
        (RuntimeError("odd"), 1, "Unexpected error: RuntimeError: odd"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (Interrupted(signal.SIGTERM), 143, "Terminated."),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_errors_of_the_workers_end_in_their_exit_code(
    calls: Calls, error: BaseException, code: int, sentence: str
) -> None:
    calls.error = error
    result = command("train -l guess -d dots")
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_evaluate_passes_on_what_is_given(calls: Calls) -> None:
    result = command("evaluate . --shots 1,5 --steps 0,3 --tasks 9 --split val --seed 4 --ways 3 --device cpu --json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"accuracy": {"mean": 0.5}}
    call = calls[0]
    assert (call.shots, call.steps, call.tasks, call.split, call.seed) == ([1, 5], [0, 3], 9, "val", 4)
    assert (call.ways, call.device) == (3, "cpu")


def test_of_several_processes_the_leading_one_evaluates(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert command("evaluate . --json").exit_code == 0
        assert len(calls) == (rank == 0)


def test_config_prints_a_run_file_with_origins() -> None:
    result = command("config -l guess -d dots --seed 9")
    assert result.exit_code == 0, result.stderr
    values = tomllib.loads(result.stdout)
    assert values["seed"] == 9
    assert values["learner"] == {"name": "guess", "courage": 0.5}
    assert values["adapters"] == {}
    assert "# --seed" in result.stdout
    Path("run.toml").write_text(result.stdout, "utf-8")
    again = command("config -c run.toml --json")
    assert tomllib.loads(result.stdout)["dataset"] == json.loads(again.stdout)["values"]["dataset"]


def test_config_as_json_and_without_a_learner() -> None:
    answer = json.loads(command("config -d dots --json").stdout)
    assert answer["origins"]["dataset.name"] == "--dataset"
    assert "learner" not in answer["values"]


def test_data_inspect() -> None:
    answer = json.loads(command("data inspect dots --json --set dataset.size=3").stdout)
    assert answer["splits"]["train"] == {"classes": 9}
    assert answer["splits"]["val"] == {"unavailable": "No val split."}
    assert answer["task"]["input shape"] == [1, 3, 3]
    assert "made of dots" in command("data inspect dots").stdout


def test_numbers_are_shown_as_a_person_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dots, "facts", lambda self, split: {"images": 16000, "error": 4.2516666666, "what": "dots"})
    assert "  test: images 16,000, error 4.252, what dots\n" in command("data inspect dots").stdout
    assert json.loads(command("data inspect dots --json").stdout)["splits"]["test"]["error"] == 4.2516666666


def test_data_fetch_says_how_far_it_is() -> None:
    result = command("data fetch dots")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip().endswith("dots.zip")
    assert len(result.stderr.splitlines()) == 11
    answer = json.loads(command("data fetch dots --json").stdout)
    assert (answer["name"], [Path(path).name for path in answer["files"]]) == ("dots", ["dots.zip"])


def test_data_preview_draws_one_task(calls: Calls) -> None:
    result = command("data preview dots --out pictures/x.png --index 3")
    assert result.exit_code == 0, result.stderr
    assert Path("pictures/x.png").read_bytes() == b"picture"
    assert calls[0].task.support.x.tolist() == [3.0]
    answer = json.loads(command("data preview dots --out x.png --index 2 --json").stdout)
    assert (answer["picture"], answer["index"], answer["shots"]) == ("x.png", 2, 1)


def test_the_announcement_says_where_the_run_is_and_that_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    announcement, info = (
        _Announcement(),
        RunInfo(tmp_path, {}, "classification", environment={"plan": "vmap", "chunk": 4, "os": "x"}),
    )
    announcement.metaforge_run_start(info)
    assert f"run folder: {tmp_path}  (plan vmap, chunk 4)" in capsys.readouterr().err
    announcement.metaforge_run_end(info, KeyboardInterrupt())
    assert capsys.readouterr().err == ""
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "LATEST").write_text("step-0000001")
    announcement.metaforge_run_end(info, KeyboardInterrupt())
    assert f"What was learned so far is in {tmp_path}" in capsys.readouterr().err
    announcement.metaforge_run_start(RunInfo(None, {}, "classification"))
    announcement.metaforge_run_end(info, None)
    assert capsys.readouterr().err == ""
