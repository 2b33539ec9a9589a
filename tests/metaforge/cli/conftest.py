"""Fixtures for tests of the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fake_commands import Calls, mixed_registry, record_calls
from metaforge.registry.registry import Registry
from metaforge.runs import checkpoint

CORPUS = Path(__file__).parents[2] / "corpus" / "checkpoints"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Record what the commands call, with the plugins `guess` and `dots`, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAFORGE_DATA", str(tmp_path / "data"))
    return record_calls(monkeypatch)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Install the plugins of `mixed_registry`."""
    registry = mixed_registry()
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: registry)
    return registry


@pytest.fixture
def saved_run(tmp_path: Path) -> Path:
    """Return a run folder with checkpoints of steps 3 to 6, of which step 4 is the best."""
    path = tmp_path / "run"
    shutil.copytree(CORPUS / "schema-2", path)
    saved = checkpoint.load(path / "ckpt" / "step-0000005")
    facts = {name: value for name, value in saved.facts.items() if name not in ("schema", "step")}
    shutil.rmtree(path / "ckpt")
    for step in range(3, 7):
        values = {name: value + step for name, value in saved.values.items()}
        checkpoint.save(path / "ckpt", step, values, saved.training, facts)
    checkpoint.mark_best(path / "ckpt", 4)
    return path
