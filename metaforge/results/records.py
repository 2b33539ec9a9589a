"""The files of a run folder that reports are made of: evaluations, metrics, status and environment."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaforge.errors import DataError
from metaforge.results.statistics import StepScore
from metaforge.system.files import write_atomically, write_errors
from metaforge.system.untrusted import UNREADABLE, parse_json, read_object, read_regular_file

Record = dict[str, Any]

EVALUATIONS = "evaluation"
PICTURES = "pictures"


def evaluation_path(folder: Path, split: str, ways: int, shots: int) -> Path:
    """Return the path, in a run folder, of the evaluation of a split at one shape of tasks."""
    return folder / EVALUATIONS / f"{split}-{ways}w{shots}s.json"


def write_evaluation(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the record of an evaluation, including the values of every task, and return its path."""
    path = evaluation_path(folder, record["split"], record["ways"], record["shots"])
    # One line per field, so that a person can read the means beside the long lists.
    fields = (
        f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for name, value in record.items()
    )
    write_in_folder(path, "{\n" + ",\n".join(fields) + "\n}\n")
    return path


def write_in_folder(path: Path, data: str | bytes) -> None:
    """Write a file atomically; create its folder if it does not exist."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def read_evaluations(folder: Path) -> list[Record]:
    """Return the records of a run folder, ordered by split, ways and shots; `DataError` if one is damaged."""
    records = [read_json(path) for path in sorted((folder / EVALUATIONS).glob("*.json"))]
    return sorted(records, key=lambda record: (record["split"], record["ways"], record["shots"]))


def read_json(path: Path) -> Record:
    """Return the JSON object in a file, or `{}` if there is no file; `DataError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_object(path)
    except UNREADABLE as error:
        raise DataError(
            f"{path.name} is not a valid JSON object: {error}",
            where=str(path),
            remedy="delete the file; if it is an evaluation, evaluate again",
        ) from error


def read_toml(path: Path) -> Record:
    """Return the values in a TOML file, or `{}` if there is no file; `DataError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        return tomllib.loads(read_regular_file(path).decode())
    except UNREADABLE as error:
        raise DataError(
            f"{path.name} is not valid TOML: {error}", where=str(path), remedy="correct the file"
        ) from error


def read_metrics(path: Path) -> list[Record]:
    """Return the rows of a metrics file in order, each with its `step`.

    A last line that a crash has cut short is ignored; any other invalid line raises `DataError`.
    """
    values, lines = [], read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            values.append(parse_json(line))
        except UNREADABLE as error:
            if number < len(lines):
                raise DataError(f"Line {number} is not JSON.", where=str(path), remedy="remove the line") from error
    rows = [
        {name: value for name, value in row.items() if _is_number_or_null(value)}
        for row in values
        if isinstance(row, dict)
    ]
    return [row for row in rows if row.get("step") is not None]


def _is_number_or_null(value: object) -> bool:
    """Return whether a value is a number, or the null that JSON has in place of a number that is not finite."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def read_text(path: Path) -> str:
    """Return a text file without surrounding space, or `""` if there is no file; `DataError` if it is unreadable."""
    try:
        return read_regular_file(path).decode("utf-8", "replace").strip() if path.exists() else ""
    except UNREADABLE as error:
        raise DataError(
            f"{path.name} cannot be read: {error}", where=str(path), remedy="replace or remove the file"
        ) from error


def run_seconds(status: Mapping[str, Any]) -> float | None:
    """Return the duration of a run in seconds, or None if its status has none."""
    seconds = status.get("seconds")
    return float(seconds) if _is_number_or_null(seconds) and seconds is not None else None


def headline_score(record: Mapping[str, Any]) -> StepScore:
    """Return the one score to quote: after the learner's own number of adaptation steps, or else after the most."""
    scores: Sequence[StepScore] = record["scores"]
    own = [score for score in scores if score["steps"] == record["own_steps"]]
    return own[0] if own else scores[-1]


def without_per_task(record: Mapping[str, Any]) -> Record:
    """Return a record without the lists that have a value for every task."""
    return {name: value for name, value in record.items() if name != "per_task"}


def shape_text(record: Mapping[str, Any]) -> str:
    """Return the shape of an evaluation's tasks in words, e.g. `5-way 1-shot` or `10 points`."""
    if record["kind"] == "regression":
        return f"{record['shots']} points"
    return f"{record['ways']}-way {record['shots']}-shot"


def caption(record: Mapping[str, Any]) -> str:
    """Return the title of a plot of an evaluation: data set, learner, shape and split."""
    return f"{record['dataset']} · {record['learner']} · {shape_text(record)} · {record['split']} split"
