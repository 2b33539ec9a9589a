"""Tests of the folder that holds data sets: an environment variable, or the user's data folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaforge.data.root import data_root


def test_the_environment_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAFORGE_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("METAFORGE_DATA", "~/data")
    assert data_root() == Path.home() / "data"


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_it_is_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("METAFORGE_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("METAFORGE_DATA", value)
    assert data_root().is_absolute()
    assert data_root().name == "metaforge"
