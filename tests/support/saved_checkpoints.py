"""Checkpoints for tests, and a way to forge their files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

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
