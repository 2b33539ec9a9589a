"""Settings of small runs of every built-in learner, and a digest by which two runs are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaforge.runs import checkpoint

# Metrics that depend on the clock, and so differ between two equal runs.
_CLOCK = {"elapsed", "eta", "tasks_per_second"}
_GLYPHS = {
    "dataset": {"name": "glyphs", "size": 16, "train": 20, "val": 8, "test": 8, "writers": 6},
    "backbone": {"name": "conv4", "filters": 4},
    "task": {"ways": 3, "shots": 1, "queries": 2},
    "train": {"ways": 3, "shots": 1, "queries": 2},
}
_SINUSOID = {
    "dataset": {"name": "sinusoid"},
    "backbone": {"name": "mlp", "widths": [8]},
    "task": {"shots": 5, "queries": 5},
}
LEARNERS: Mapping[str, Mapping[str, Any]] = {
    "maml": _SINUSOID,
    "fomaml": _SINUSOID,
    "reptile": _SINUSOID,
    "imaml": _SINUSOID,
    "cavia": _SINUSOID,
    "leo": _GLYPHS,
    "protonet": _GLYPHS,
    "mann": _GLYPHS,
    "cnp": {key: value for key, value in _SINUSOID.items() if key != "backbone"},
}


def settings(learner: str, **train: Any) -> dict[str, Any]:
    """Return the settings of a small run, as in a run file: one thread, three tasks per step, few validations."""
    shape = LEARNERS[learner].get("train", {})
    return {
        **LEARNERS[learner],
        "learner": {"name": learner},
        "train": {**shape, "tasks": 3, "log_every": 3, "validate_every": 4, "validate_tasks": 2, **train},
        "checkpoint": {"every": 1},
        "evaluate": {"tasks": 4},
        "engine": {"threads": 1, "compile": "off"},
        "hooks": {"early-stop": {"patience": 1000}, "jsonl": {}},
    }


def write_run_file(path: Path, values: Mapping[str, Any]) -> Path:
    """Write settings as a run file, and return its path."""
    import tomli_w

    path.write_text(tomli_w.dumps(values), "utf-8")
    return path


def digest(folder: Path, *, lines: Sequence[str] = ("metrics.jsonl", "steps.jsonl")) -> str:
    """Return the SHA-256 of the last checkpoint of a run and of its metrics files, without times.

    It covers values, the state of the optimiser, the facts of the checkpoint and the states of hooks. Raises
    `CheckpointError` if the run has no valid checkpoint.
    """
    saved, bad = checkpoint.load_latest(folder / "ckpt")
    hasher = hashlib.sha256(f"{saved.step} {len(bad)} {checkpoint.best(folder / 'ckpt')}".encode())
    for tensors in (saved.values, saved.training):
        for name, value in sorted(tensors.items()):
            hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    facts = {name: saved.facts[name] for name in ("window", "norms", "skipped", "best", "best_step", "hooks")}
    hasher.update(json.dumps([facts, *(records(folder / name) for name in lines)], sort_keys=True).encode())
    return hasher.hexdigest()


def records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file without times; an empty list if there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [{name: value for name, value in json.loads(line).items() if name not in _CLOCK} for line in lines]


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files and folders that a run folder still holds."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.part"))
