"""Checkpoints are restored bit-exactly; a damaged one is reported, and the previous one is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metaforge.errors import CheckpointError, StorageError
from metaforge.runs import checkpoint
from saved_checkpoints import FILES, TRAINING, VALUES, saved


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved(tmp_path / "ckpt", note="x")
    loaded, bad = checkpoint.load_latest(tmp_path / "ckpt")
    assert not bad
    assert loaded.step == 7
    assert loaded.facts == {"schema": checkpoint.SCHEMA, "step": 7, "note": "x"}
    for ours, theirs in ((VALUES, loaded.values), (TRAINING, loaded.training)):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name].dtype == value.dtype
            assert torch.equal(theirs[name], value)


def test_latest_names_the_last_checkpoint_and_no_temporary_files_remain(tmp_path: Path) -> None:
    for step in (1, 2, 2):
        saved(tmp_path, step)
    assert checkpoint.load_latest(tmp_path)[0].step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-0000001", "step-0000002"]
    assert (tmp_path / "LATEST").read_text() == "step-0000002\n"


def test_the_entry_of_a_new_folder_is_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(checkpoint, "fsync", seen.append)
    saved(tmp_path / "ckpt", 1)
    assert tmp_path in seen
    seen.clear()
    saved(tmp_path / "ckpt", 2)
    assert tmp_path not in seen


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (saved(tmp_path) / "model.safetensors").write_bytes(b"")
    saved(tmp_path)
    assert checkpoint.fault(tmp_path, 7) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "link", "folder"])
def test_damage_is_reported_and_the_previous_checkpoint_is_used(tmp_path: Path, name: str, damage: str) -> None:
    saved(tmp_path, 6)
    file = saved(tmp_path, 7) / name
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    elif damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.unlink()
        if damage == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            file.symlink_to(tmp_path / "elsewhere")
        elif damage == "folder":
            file.mkdir()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(file.parent)
    # A flipped bit in the manifest shows in the file that it speaks of.
    assert str(file.parent) in caught.value.where
    assert name == "MANIFEST.json" or name in str(caught.value)
    loaded, bad = checkpoint.load_latest(tmp_path)
    assert loaded.step == 6
    assert [error.where for error in bad] == [caught.value.where]


def test_it_is_an_error_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        (saved(tmp_path, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints can be used.*state\.json"):
        checkpoint.load_latest(tmp_path)


def test_pruning_keeps_the_last_valid_ones_and_the_best(tmp_path: Path) -> None:
    paths = [saved(tmp_path, step) for step in range(1, 8)]
    checkpoint.mark_best(tmp_path, 2)
    (paths[6] / "state.json").unlink()
    removed = checkpoint.prune(tmp_path, keep=2)
    assert checkpoint.best(tmp_path) == 2
    # The damaged one is not one of the two to keep, and is left for people to look at.
    assert checkpoint.steps(tmp_path) == [7, 6, 5, 2]
    assert sorted(path.name for path in removed) == ["step-0000001", "step-0000003", "step-0000004"]


def test_a_file_with_the_name_of_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    for step in (1, 3):
        (tmp_path / f"step-{step:07d}").write_text("")
    for step in (2, 3, 4):
        saved(tmp_path, step)
    assert [path.name for path in checkpoint.prune(tmp_path, keep=1)] == [f"step-{step:07d}" for step in (3, 2, 1)]
    assert checkpoint.steps(tmp_path) == [4]


def test_a_full_disk_is_detected_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved(tmp_path, 1)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        StorageError, match=r"The disk is full: [\d,]+ bytes are needed\. 1,000 bytes are free"
    ) as caught:
        saved(tmp_path, 2)
    assert caught.value.exit_code == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", before.name]


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            checkpoint.load_latest(folder)
