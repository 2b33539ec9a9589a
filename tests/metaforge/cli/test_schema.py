"""`metaforge schema`: the schema on stdout or in a file, and a note for each plugin that is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_commands import Halving
from metaforge.cli.app import app
from metaforge.config.schema import kind_schema, run_schema
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry


def broken() -> Registry:
    """Return a registry with a plugin that cannot be imported."""
    return Registry([Entry("adapter", "gone", "nowhere:Gone", "zoo", "1.0")]).with_plugin("adapter", "halving", Halving)


def test_the_schema_is_printed_or_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("metaforge.registry.scan.scan", broken)
    runner = CliRunner()
    result = runner.invoke(app, ["schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == run_schema(broken()).value
    assert "Left out: The adapter 'gone' of zoo 1.0 cannot be loaded" in result.stderr
    file = tmp_path / "new" / "run.schema.json"
    result = runner.invoke(app, ["schema", "--kind", "adapters", "--out", str(file), "--json"])
    assert result.exit_code == 0
    assert json.loads(file.read_text("utf-8")) == kind_schema(broken(), "adapter").value
    assert json.loads(result.stdout)["file"] == str(file)
    assert runner.invoke(app, ["schema", "--kind", "adaptor"]).exit_code == 2
