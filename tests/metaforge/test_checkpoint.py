"""Checkpoints come back bit for bit, and a damaged one is refused by name before anything is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metaforge import checkpoint
from metaforge.errors import CheckpointError

VALUES = {"model.a": torch.arange(6.0).reshape(2, 3), "state.count": torch.tensor(3.5, dtype=torch.float64)}


def test_round_trip_is_exact(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "ckpt", 7, VALUES, {"note": "x"})
    loaded = checkpoint.load_latest(tmp_path / "ckpt")
    assert loaded.facts == {"schema": checkpoint.SCHEMA, "step": 7, "note": "x"}
    assert loaded.values.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert loaded.values[name].dtype == value.dtype
        assert torch.equal(loaded.values[name], value)


def test_latest_is_the_last_saved_and_nothing_is_left_over(tmp_path: Path) -> None:
    for step in (1, 2, 2):
        checkpoint.save(tmp_path, step, VALUES, {})
    assert checkpoint.load_latest(tmp_path).facts["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-0000001", "step-0000002"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named(tmp_path: Path, name: str, damage: str) -> None:
    file = checkpoint.save(tmp_path, 1, VALUES, {}) / name
    data = file.read_bytes()
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    with pytest.raises(CheckpointError):
        checkpoint.load_latest(tmp_path)


def test_latest_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = checkpoint.save(tmp_path / "outside", 1, VALUES, {})
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "LATEST").write_text(f"../outside/{outside.name}")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load_latest(tmp_path / "ckpt")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, VALUES, {})
    state = json.dumps({"schema": 99, "step": 1}).encode()
    manifest = json.loads((path / "MANIFEST.json").read_text())
    import hashlib

    manifest["state.json"]["sha256"] = hashlib.sha256(state).hexdigest()
    (path / "state.json").write_bytes(state)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="schema"):
        checkpoint.load_latest(tmp_path)


def test_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load_latest(tmp_path)
