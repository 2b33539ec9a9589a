"""No file can name code: names in a run file or a run folder are looked up among installed plugins, never imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import metaforge
from metaforge.cli.app import app
from metaforge.errors import MetaForgeError, PluginError

CANARY = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("imported").touch()


class Canary(nn.Linear):
    def __init__(self, *args, **kwargs):
        super().__init__(1, 4)
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a module on Python's path that creates a file when it is imported; return the path of that file."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "canary_module.py").write_text(CANARY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "canary_module", raising=False)
    return folder / "imported"


IMPORT_PATHS = (
    "canary_module:Canary",
    "canary_module.Canary",
    "python:canary_module",
    "metaforge:canary_module:Canary",
)
FILES = [f'backbone = "{path}"' for path in IMPORT_PATHS]
FILES += [f'{kind} = "canary_module:Canary"' for kind in ("learner", "dataset", "adapters", "regularizers", "hooks")]
FILES += ['[hooks."canary_module:Canary"]', 'hooks = ["canary_module:Canary"]']
FILES += [
    f'[backbone]\nname = "mlp"\n{key} = "canary_module:Canary"'
    for key in ("_target_", "class", "module", "_instantiator", "factory")
]


def run_file(path: Path, text: str) -> Path:
    rest = "" if text.startswith("learner") else 'learner = "maml"\n'
    path.write_text(rest + text)
    return path


@pytest.mark.parametrize("text", FILES)
def test_a_run_file_cannot_name_code(text: str, tmp_path: Path, canary: Path) -> None:
    path = run_file(tmp_path / "run.toml", text)
    for arguments in (["config", "--config", str(path)], ["train", "--dry-run", "--config", str(path)]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (2, 4)
        assert isinstance(result.exception, SystemExit)
        assert "Error: " in result.output
    if not text.startswith("learner"):
        with pytest.raises(MetaForgeError):
            metaforge.train("maml", config=path, out=tmp_path / "run")
    assert not canary.exists()


def test_settings_and_flags_cannot_name_code(canary: Path, tmp_path: Path) -> None:
    for arguments in (
        ["--backbone", IMPORT_PATHS[0]],
        ["--set", f"backbone={IMPORT_PATHS[0]}"],
        ["--adapter", IMPORT_PATHS[0]],
    ):
        result = CliRunner().invoke(app, ["config", "--learner", "maml", *arguments])
        assert result.exit_code == 4
    with pytest.raises(PluginError):
        metaforge.train("maml", settings={"backbone": IMPORT_PATHS[0]}, out=tmp_path / "run")
    assert not canary.exists()


def test_the_caller_of_the_function_can_name_code(canary: Path, tmp_path: Path) -> None:
    """This shows that the module can be imported: otherwise the other tests would prove nothing."""
    settings = {"train": {"steps": 0}, "engine": {"plan": "loop"}}
    metaforge.train("maml", "sinusoid", backbone=IMPORT_PATHS[0], settings=settings, out=tmp_path / "run")
    assert canary.exists()


def test_a_run_folder_cannot_name_code(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "run"
    metaforge.train("cnp", out=folder, steps=1, tasks=1, settings={"evaluate": {"tasks": 2}})
    config = (folder / "config.toml").read_text()
    for before, after in (
        ('name = "cnp"', f'name = "{IMPORT_PATHS[0]}"'),
        ('name = "sinusoid"', f'name = "{IMPORT_PATHS[0]}"'),
        ("[learner]", f'[backbone]\nname = "{IMPORT_PATHS[0]}"\n\n[learner]'),
        ("[hooks]", f'[hooks."{IMPORT_PATHS[0]}"]'),
    ):
        assert config.count(before) == 1
        (folder / "config.toml").write_text(config.replace(before, after))
        for arguments in (["evaluate", str(folder)], ["train", "--resume", str(folder)]):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code in (2, 4, 5)
            assert "Error: " in result.output
        with pytest.raises(MetaForgeError):
            metaforge.load(folder)
    assert not canary.exists()
