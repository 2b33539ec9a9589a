"""The flags that commands share, and the layers of configuration that they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_commands import Calls
from metaforge.cli.options import RunFlags, config_layers, parse_integers, parse_kind, scan_plugins
from metaforge.errors import ConfigError
from metaforge.registry.registry import Registry


def test_flags_become_one_layer_above_the_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\n[train]\nsteps = 5\n", "utf-8")
    file, flags = RunFlags("guess", steps=7, config=path, settings=["train.lr=0.1"]).layers()
    assert file.values == {"seed": 1, "train": {"steps": 5}}
    assert flags.values == {"learner": {"name": "guess"}, "train": {"steps": 7, "lr": 0.1}}


def test_flags_that_were_not_set_leave_no_value() -> None:
    (layer,) = RunFlags().layers()
    assert layer.values == {}
    (layer,) = config_layers(None, None, {"dataset": ("dataset.name", "dots"), "other": ("seed", None)})
    assert layer.values == {"dataset": {"name": "dots"}}


def test_hooks_are_chosen_as_adapters_are(tmp_path: Path) -> None:
    (layer,) = RunFlags(adapter="a, b", regularizer="c", hook="d,e").layers()
    assert layer.values == {"adapters": "a, b", "regularizers": "c", "hooks": "d,e"}
    assert layer.origin_of("hooks") == "--hook"
    with pytest.raises(ConfigError, match="--hook and --set hooks set hooks to different values: 'd', 'e'"):
        RunFlags(hook="d", settings=["hooks=e"]).layers()
    path = tmp_path / "run.toml"
    path.write_text("[hooks.csv]\nevery = 3\n[hooks.progress]\n", "utf-8")
    settings = ["hooks.jsonl.every=2"]
    _, resolved = RunFlags("maml", config=path, hook="jsonl,csv", settings=settings).resolve()
    assert resolved.to_dict()["hooks"]["jsonl"]["every"] == 2
    assert {name: table["every"] for name, table in resolved.to_dict()["hooks"].items()} == {"jsonl": 2, "csv": 3}
    assert RunFlags("maml", config=path, hook="none").resolve()[1].hooks == ()


def test_run_flags_are_resolved_with_the_installed_plugins(calls: Calls) -> None:
    registry, resolved = RunFlags("guess", "dots", seed=9).resolve()
    assert registry.names("learner") == ["guess"]
    assert resolved.run.seed == 9
    assert resolved.origins["seed"] == "--seed"
    with pytest.raises(ConfigError, match="No learner is chosen"):
        RunFlags(dataset="dots").resolve()
    assert RunFlags(dataset="dots").resolve(complete=False)[1].learner is None


def test_integers_are_separated_by_commas() -> None:
    assert parse_integers("--shots", None) is None
    assert parse_integers("--shots", "1, 5,10") == [1, 5, 10]
    for text in ("", "1,", "1;2", "1.5"):
        with pytest.raises(ConfigError, match=r"--shots is .*, but should be integers separated by commas"):
            parse_integers("--shots", text)


def test_a_kind_is_named_in_the_singular_or_the_plural() -> None:
    assert parse_kind(None) is None
    assert parse_kind("learners") == parse_kind("learner") == "learner"
    with pytest.raises(ConfigError, match="Did you mean 'learner'"):
        parse_kind("lerner")


def test_notes_of_the_scan_are_printed_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry([], notes=["the folder cannot be read"])
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: registry)
    assert scan_plugins() is registry
    assert capsys.readouterr() == ("", "Note: the folder cannot be read\n")
