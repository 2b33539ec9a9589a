"""Checkpoints come back bit for bit; a damaged one is refused by name, and the one before it serves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaforge.errors import CheckpointError, StorageError
from metaforge.runs import checkpoint

VALUES = {"model.a": torch.arange(6.0).reshape(2, 3), "state.count": torch.tensor(3.5, dtype=torch.float64)}
TRAINING = {"exp_avg.model.a": torch.full((2, 3), 0.5), "step.model.a": torch.tensor(7.0)}
FILES = ("model.safetensors", "train.safetensors", "state.json", "MANIFEST.json")


def saved(folder: Path, step: int = 7, **facts: Any) -> Path:
    return checkpoint.save(folder, step, VALUES, TRAINING, facts)


def rewritten(path: Path, name: str, data: bytes) -> None:
    """Replace a file of a checkpoint and make the manifest agree, as somebody would who means harm."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / name).write_bytes(data)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


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


def test_latest_is_the_last_saved_and_nothing_is_left_over(tmp_path: Path) -> None:
    for step in (1, 2, 2):
        saved(tmp_path, step)
    assert checkpoint.load_latest(tmp_path)[0].step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-0000001", "step-0000002"]
    assert (tmp_path / "LATEST").read_text() == "step-0000002\n"


def test_the_entry_of_a_new_folder_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_damage_is_named_and_the_checkpoint_before_serves(tmp_path: Path, name: str, damage: str) -> None:
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


def test_where_all_are_damaged_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    for step in (1, 2):
        (saved(tmp_path, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints can be used.*state\.json"):
        checkpoint.load_latest(tmp_path)


def test_a_checkpoint_that_is_a_link_is_refused(tmp_path: Path) -> None:
    outside = saved(tmp_path / "outside")
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / outside.name).symlink_to(outside)
    with pytest.raises(CheckpointError, match="link"):
        checkpoint.load_latest(tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("mangle", "complaint"),
    [
        (lambda m: m | {"../state.json": m["state.json"]}, "it lists"),
        (lambda m: {"state.json": m["state.json"]}, "it lists"),
        (lambda m: m | {"state.json": {"sha256": "x"}}, "no size"),
        (lambda m: m | {"state.json": {"size": True, "sha256": "x"}}, "no size"),
        (lambda m: m | {"state.json": {"size": 1 << 40, "sha256": "x"}}, "no size"),
        (lambda m: m | {"state.json": "x"}, "no size"),
        (
            lambda m: m | {"model.safetensors": m["model.safetensors"] | {"size": 1 << 60}},
            "model.safetensors.*its size",
        ),
        (lambda m: m | {"train.safetensors": m["train.safetensors"] | {"size": 10**30}}, "train.safetensors.*its size"),
        (lambda m: m | {"model.safetensors": m["model.safetensors"] | {"size": 1}}, "model.safetensors.*is larger"),
        (lambda m: [m], "no JSON|not a JSON object"),
    ],
)
def test_a_manifest_is_not_believed(tmp_path: Path, mangle: Callable[[Any], Any], complaint: str) -> None:
    path = saved(tmp_path)
    manifest = mangle(json.loads((path / "MANIFEST.json").read_text()))
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"schema": 99, "step": 7}, "its schema is 99"),
        ({"schema": 1, "step": 7}, "its schema is 1"),
        ({"schema": [2], "step": 7}, "its schema"),
        ({"schema": 2, "step": 8}, "it belongs to step 8"),
        ({"schema": 2}, "it belongs to step None"),
        ([], "not a JSON object"),
    ],
)
def test_facts_that_do_not_fit_are_refused(tmp_path: Path, facts: Any, complaint: str) -> None:
    path = saved(tmp_path)
    rewritten(path, "state.json", json.dumps(facts).encode())
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(path)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewritten(path, "state.json", b"[" * 200_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        checkpoint.load(path)


def test_tensors_with_a_false_header_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewritten(path, "model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load(path)


def test_pruning_keeps_the_last_valid_ones_and_the_best(tmp_path: Path) -> None:
    paths = [saved(tmp_path, step) for step in range(1, 8)]
    checkpoint.mark_best(tmp_path, 2)
    (paths[6] / "state.json").unlink()
    removed = checkpoint.prune(tmp_path, keep=2)
    assert checkpoint.best(tmp_path) == 2
    # The damaged one is not one of the two to keep, and is left for people to look at.
    assert checkpoint.steps(tmp_path) == [7, 6, 5, 2]
    assert sorted(path.name for path in removed) == ["step-0000001", "step-0000003", "step-0000004"]


def test_a_plain_file_where_a_checkpoint_should_be_is_in_nobody_s_way(tmp_path: Path) -> None:
    for step in (1, 3):
        (tmp_path / f"step-{step:07d}").write_text("")
    for step in (2, 3, 4):
        saved(tmp_path, step)
    assert [path.name for path in checkpoint.prune(tmp_path, keep=1)] == [f"step-{step:07d}" for step in (3, 2, 1)]
    assert checkpoint.steps(tmp_path) == [4]


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved(tmp_path, 1)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("metaforge.system.files.shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"no room: [\d,]+ bytes are needed\. 1,000 bytes are free") as caught:
        saved(tmp_path, 2)
    assert caught.value.exit_code == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", before.name]


def test_no_checkpoint_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            checkpoint.load_latest(folder)
