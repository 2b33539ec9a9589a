"""`metaforge train`; training and evaluation are replaced by functions that record their arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fake_commands import Calls, run_command
from metaforge.authoring.hooks import RunInfo
from metaforge.cli.train import _RunMessages

pytestmark = pytest.mark.usefixtures("calls")


def run_info(folder: Path | None, **facts: Any) -> RunInfo:
    return RunInfo(folder, {}, "classification", **facts)


def test_train_resolves_the_flags_and_prints_the_next_command(calls: Calls) -> None:
    result = run_command("train -l guess -d dots --steps 7 --budget 10m --seed 3 --set learner.courage=1 --device cpu")
    assert result.exit_code == 0, result.stderr
    (call,) = calls
    run = call.resolved.run
    assert (run.train.steps, run.train.budget, run.seed, run.device) == (7, 600.0, 3, "cpu")
    assert call.resolved.learner.config.courage == 1
    assert call.folder is None
    assert "Next: metaforge evaluate runs/new" in result.stderr
    assert "loss: 0.25" in result.stdout


def test_train_answers_in_json_and_can_evaluate_after_training(calls: Calls) -> None:
    result = run_command("train -l guess -d dots --out here/run --evaluate --json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["folder"] == "here/run"
    assert answer["evaluation"] == {"accuracy": {"mean": 0.5}}
    assert calls[1].folder == Path("here/run")


def test_a_dry_run_has_no_folder(calls: Calls) -> None:
    result = run_command("train -l guess -d dots --dry-run")
    assert result.exit_code == 0, result.stderr
    assert calls[0].folder is None
    assert calls[0].dry_run
    assert "Next" not in result.stderr
    assert result.stdout.startswith("dry run: nothing was written\n")
    assert "folder" not in result.stdout
    assert not Path("runs").exists()
    answer = json.loads(run_command("train -l guess -d dots --dry-run --json").stdout)
    assert answer == {"dry_run": True, "loss": 0.25, "steps": 1000}


def test_flags_override_the_run_file(calls: Calls) -> None:
    Path("run.toml").write_text('seed = 5\n[learner]\nname = "guess"\ncourage = 0.1\n[dataset]\nname = "dots"', "utf-8")
    result = run_command("train -c run.toml --seed 6")
    assert result.exit_code == 0, result.stderr
    assert calls[0].resolved.run.seed == 6
    assert calls[0].resolved.learner.config.courage == 0.1


@pytest.mark.parametrize("flags", ["--out new", "--config run.toml", "--dry-run"])
def test_a_resumed_run_has_its_folder_and_configuration_already(flags: str, calls: Calls) -> None:
    result = run_command(f"train --resume runs/old {flags}")
    assert result.exit_code == 2
    assert f"--resume and {flags.partition(' ')[0]} cannot be given together" in result.stderr
    assert calls == []


def test_several_processes_get_one_folder_and_the_same_arguments(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []

    def launch(arguments: list[str], processes: int, restarts: int) -> int:
        launched.append((arguments, processes, restarts))
        return 9

    monkeypatch.setattr("metaforge.engine.launcher.launch", launch)
    monkeypatch.setattr("sys.argv", ["metaforge", "train", "-l", "guess"])
    assert run_command("train -l guess -d dots --nproc 2 --max-restarts 3").exit_code == 9
    ((arguments, processes, restarts),) = launched
    assert arguments[:4] == ["train", "-l", "guess", "--out"]
    assert arguments[4].startswith("runs/dots-guess-")
    assert (processes, restarts) == (2, 3)
    assert calls == []


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
        ("train --nonsense", 2, "nonsense"),
    ],
)
def test_invalid_input_ends_with_a_message_and_an_exit_code(arguments: str, code: int, sentence: str) -> None:
    result = run_command(arguments)
    assert result.exit_code == code, result.stderr
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_the_run_folder_and_after_an_error_its_last_checkpoint_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages, info = _RunMessages(), run_info(tmp_path, environment={"plan": "vmap", "chunk": 4, "os": "x"})
    messages.metaforge_run_start(info)
    assert f"run folder: {tmp_path}  (plan vmap, chunk 4)" in capsys.readouterr().err
    messages.metaforge_run_end(info, KeyboardInterrupt())
    assert capsys.readouterr().err == ""
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "LATEST").write_text("step-0000001")
    messages.metaforge_run_end(info, KeyboardInterrupt())
    assert f"The last checkpoint of this run is in {tmp_path}" in capsys.readouterr().err
    messages.metaforge_run_start(run_info(None))
    messages.metaforge_run_end(info, None)
    assert capsys.readouterr().err == ""


def test_how_a_run_was_resumed_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"exact": False, "damaged": ["step 5 is damaged"], "differences": ["train.lr: 1 -> 2"], "note": "A note."}
    _RunMessages().metaforge_run_start(run_info(tmp_path, environment={"resumed": facts}, start=4))
    lines = capsys.readouterr().err.splitlines()[1:]
    assert lines == [
        "Warning: step 5 is damaged",
        "resumed after outer step 4, with these changes:",
        "  train.lr: 1 -> 2",
        "A note.",
    ]


def test_the_initial_values_and_the_frozen_ones_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "run": "runs/\x1b[31mfirst",
        "step": 7,
        "damaged": ["step-0000009 is damaged"],
        "taken": [f"model.{i}" for i in range(10)],
        "cast": {"torch.float64 to torch.float32": ["model.0"]},
        "not_taken": {"that run has no such value": ["head.weight"]},
        "unused": ["old.weight"],
        "backbone": ["backbone.variant is pool there and stride here"],
    }
    environment = {"init_from": facts, "frozen": ["model.0"]}
    _RunMessages().metaforge_run_start(run_info(Path("runs/new"), environment=environment))
    printed = capsys.readouterr().err.splitlines()
    assert printed[1:] == [
        "Warning: step-0000009 is damaged",
        "initial values from runs/ [31mfirst, outer step 7: 10 of 11 values",
        "  taken: model.0, model.1, model.2, model.3, model.4, model.5, model.6, model.7 and 2 more",
        "  cast from torch.float64 to torch.float32: model.0",
        "  not taken, that run has no such value: head.weight",
        "  not used of that run: old.weight",
        "Warning: the network is not that of the run: backbone.variant is pool there and stride here",
        "frozen: model.0",
    ]
    _RunMessages().metaforge_run_start(run_info(Path("runs/new"), environment={"init_from": facts}, start=5))
    assert "initial values" not in capsys.readouterr().err


def test_statistics_of_a_file_that_the_policy_does_not_use_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"weights": {"unused_statistics": {"norm": "transductive", "layers": ["1.norm", "2.norm"]}}}
    for start, printed in ((0, 1), (5, 0)):
        _RunMessages().metaforge_run_start(run_info(Path("runs/new"), environment=environment, start=start))
        assert capsys.readouterr().err.count(
            "not used of the weights: the running statistics of 1.norm, 2.norm; the norm policy is transductive, and"
            " only running uses them\n"
        ) == printed  # fmt: skip


def test_flags_name_the_source_of_initial_values_and_what_is_frozen(calls: Calls) -> None:
    result = run_command("train -l guess -d dots --init-from runs/first --freeze model.0.* --freeze *.bias")
    assert result.exit_code == 0, result.stderr
    train = calls[0].resolved.run.train
    assert (train.init_from, train.freeze) == ("runs/first", ["model.0.*", "*.bias"])
    assert run_command("train --resume runs/first --init-from runs/second").exit_code == 2
