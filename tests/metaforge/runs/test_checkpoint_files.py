"""Files of a checkpoint are verified before they are used: damaged or forged ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaforge.errors import CheckpointError
from metaforge.runs import checkpoint
from saved_checkpoints import rewritten, saved


def test_a_symbolic_link_to_a_checkpoint_is_refused(tmp_path: Path) -> None:
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
def test_a_forged_manifest_is_refused(tmp_path: Path, mangle: Callable[[Any], Any], complaint: str) -> None:
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
def test_inconsistent_facts_are_refused(tmp_path: Path, facts: Any, complaint: str) -> None:
    path = saved(tmp_path)
    rewritten(path, "state.json", json.dumps(facts).encode())
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(path)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewritten(path, "state.json", b"[" * 200_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        checkpoint.load(path)


def test_tensors_with_a_forged_header_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewritten(path, "model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load(path)
