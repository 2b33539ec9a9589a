"""The files of a run folder that reports are made of: evaluations, metrics, status and environment, as plain JSON."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaforge.errors import DataError
from metaforge.system.files import write_atomically, write_errors
from metaforge.system.untrusted import UNREADABLE, parse_json, read_object, read_regular_file

Record = dict[str, Any]
Estimate = dict[str, Any]

EVALUATIONS = "evaluation"
PICTURES = "pictures"


def evaluation_path(folder: Path, split: str, ways: int, shots: int) -> Path:
    """Return where the evaluation of a split at one shape of tasks lies in a run folder."""
    return folder / EVALUATIONS / f"{split}-{ways}w{shots}s.json"


def write_evaluation(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write an evaluation's record, lists by task included, and return its path."""
    path = evaluation_path(folder, record["split"], record["ways"], record["shots"])
    # One line per field: a person can read the figures between the lists by task.
    fields = (
        f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for name, value in record.items()
    )
    write_in_folder(path, "{\n" + ",\n".join(fields) + "\n}\n")
    return path


def write_in_folder(path: Path, data: str | bytes) -> None:
    """Write a file atomically; its folder is made where it is missing."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def read_evaluations(folder: Path) -> list[Record]:
    """Return the records of a run folder, ordered by split, ways and shots; `DataError` if one is damaged."""
    records = [read_json(path) for path in sorted((folder / EVALUATIONS).glob("*.json"))]
    return sorted(records, key=lambda record: (record["split"], record["ways"], record["shots"]))


def read_json(path: Path) -> Record:
    """Return a JSON object, `{}` where there is no file; `DataError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_object(path)
    except UNREADABLE as error:
        raise DataError(
            f"{path.name} is not JSON as it should be: {error}", where=str(path), remedy="delete it and evaluate again"
        ) from error


def read_toml(path: Path) -> Record:
    """Return a TOML file's values, `{}` where there is no file; `DataError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        return tomllib.loads(read_regular_file(path).decode())
    except UNREADABLE as error:
        raise DataError(f"{path.name} is not TOML: {error}", where=str(path), remedy="correct the file") from error


def read_metrics(path: Path) -> list[Record]:
    """Return the figures of a metrics file by step, in order; a last line cut short by a crash is left out."""
    found, lines = [], read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse_json(line))
        except UNREADABLE as error:
            if number < len(lines):
                raise DataError(f"Line {number} is not JSON.", where=str(path), remedy="remove the line") from error
    rows = [{name: value for name, value in one.items() if _is_figure(value)} for one in found if isinstance(one, dict)]
    return [row for row in rows if row.get("step") is not None]


def _is_figure(value: object) -> bool:
    """Return whether a value is a number, or the null that stands for one which is not finite."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def read_text(path: Path) -> str:
    """Return a text file without surrounding space, empty where there is none; `DataError` if it cannot be read."""
    try:
        return read_regular_file(path).decode("utf-8", "replace").strip() if path.exists() else ""
    except UNREADABLE as error:
        raise DataError(
            f"{path.name} cannot be read: {error}", where=str(path), remedy="put it right, or take it away"
        ) from error


def seconds_of(status: Mapping[str, Any]) -> float | None:
    """Return how long a run took, if its status says."""
    seconds = status.get("seconds")
    return float(seconds) if _is_figure(seconds) and seconds is not None else None


def headline(record: Mapping[str, Any]) -> Estimate:
    """Return the score after the learner's own number of adaptation steps, or else after the most that were tried."""
    scores: Sequence[Estimate] = record["scores"]
    own = [score for score in scores if score["steps"] == record["own_steps"]]
    return own[0] if own else scores[-1]


def without_tasks(record: Mapping[str, Any]) -> Record:
    """Return a record's summary: everything but the lists by task."""
    return {name: value for name, value in record.items() if name != "per_task"}


def shape_text(record: Mapping[str, Any]) -> str:
    """Return the shape of an evaluation's tasks in the field's words."""
    if record["kind"] == "regression":
        return f"{record['shots']} points"
    return f"{record['ways']}-way {record['shots']}-shot"


def caption(record: Mapping[str, Any]) -> str:
    """Return what a picture of an evaluation is of: data set, learner, shape and split."""
    return f"{record['dataset']} · {record['learner']} · {shape_text(record)} · {record['split']} split"
