"""The files of a run folder that reports are made of: evaluations, metrics, status and environment."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from metaforge.authoring.scale import Scale
from metaforge.errors import DataError, shown
from metaforge.results.record_schema import OLD_SCALES, EnvironmentRecord, EvaluationRecord, StatusRecord, problems
from metaforge.results.statistics import StepScore, range_text
from metaforge.system.files import write_atomically, write_errors
from metaforge.system.untrusted import UNREADABLE, parse_json, read_object, read_regular_file, require_regular

if TYPE_CHECKING:
    from metaforge.authoring.kinds import TaskKind

Record = dict[str, Any]

EVALUATIONS, PICTURES = "evaluation", "pictures"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# The most rows of a metrics file that are kept of each sample, and the most bytes of one line.
_MAX_ROWS, _MAX_LINE = 4000, 2**20
_VALIDATED = b'"val_score"'


def evaluation_path(folder: Path, split: str, ways: int, shots: int) -> Path:
    """Return the path, in a run folder, of the evaluation of a split at one shape of tasks (0 ways: varied tasks).

    Raises `DataError` if the name of the split cannot be part of a file name.
    """
    return path_inside(folder, EVALUATIONS, f"{split}-{shape_name(ways, shots)}.json")


def shape_name(ways: int, shots: int) -> str:
    """Return the shape of an evaluation's tasks as part of a file name; 0 ways are those of varied tasks."""
    return f"{ways}w{shots}s" if ways else "varied"


def is_file_name(name: str) -> bool:
    """Return whether a name has only letters, digits, dots, hyphens and underscores, and no dot at the start."""
    return _PLAIN_NAME.fullmatch(name) is not None


def path_inside(folder: Path, *names: str) -> Path:
    """Return the path of a file in a folder; `DataError` if it is outside, by its name or through a symbolic link."""
    path = folder.joinpath(*names)
    if not all(map(is_file_name, names)) or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{shown('/'.join(names))} would not be a file inside the folder.",
            where=str(folder),
            remedy="use names of letters, digits, dots, hyphens and underscores, and no symbolic links",
        )
    return path


def write_evaluation(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the record of an evaluation, including the values of every task, and return its path."""
    path = evaluation_path(folder, record["split"], record["ways"], record["shots"])
    # One line per field, so that a person can read the means beside the long lists.
    fields = (
        f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for name, value in record.items()
    )
    write_in_folder(path, "{\n" + ",\n".join(fields) + "\n}\n", run_folder=folder)
    return path


def write_in_folder(path: Path, data: str | bytes, *, run_folder: Path | None = None) -> None:
    """Write a file atomically; create its folder if it does not exist.

    With `run_folder`, a path outside that folder is refused with `DataError`, and nothing is written.
    """
    if run_folder is not None and not path.resolve().is_relative_to(run_folder.resolve()):
        raise DataError(
            f"{path} is not inside the run folder.", where=str(run_folder), remedy="remove symbolic links from it"
        )
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def read_evaluations(folder: Path) -> list[Record]:
    """Return the records of a run folder, ordered by split, ways and shots; `DataError` if one is invalid."""
    records, errors = valid_evaluations(folder)
    if errors:
        raise errors[0]
    return records


def valid_evaluations(folder: Path) -> tuple[list[Record], list[DataError]]:
    """Return the valid records of a run folder, ordered by split, ways and shots, and an error for each other one."""
    records, errors = [], []
    for path in sorted((folder / EVALUATIONS).glob("*.json")):
        try:
            records.append(_read_evaluation(path))
        except DataError as error:
            errors.append(error)
    return sorted(records, key=lambda record: (record["split"], record["ways"], record["shots"])), errors


def _read_evaluation(path: Path) -> Record:
    """Return the record in a file after comparing it with the schema."""
    record = read_json(path)
    invalid = problems(EvaluationRecord, record)
    if invalid:
        raise DataError(
            f"{EVALUATIONS}/{path.name} is not a valid evaluation: {next(iter(invalid.values()))}",
            where=str(path),
            remedy="remove the file, and evaluate again",
        )
    return record


def read_status(folder: Path) -> tuple[Record, list[str]]:
    """Return the valid fields of `status.json`, and a sentence on each other one; `DataError` if it is not JSON."""
    return _valid_fields(folder / "status.json", StatusRecord)


def read_environment(folder: Path) -> tuple[Record, list[str]]:
    """Return the valid fields of `env.json`, and a sentence on each other one; `DataError` if it is not JSON."""
    return _valid_fields(folder / "env.json", EnvironmentRecord)


def _valid_fields(path: Path, model: type[BaseModel]) -> tuple[Record, list[str]]:
    # These files are only displayed: the scores can be read without an invalid field.
    values = read_json(path)
    invalid = problems(model, values)
    sentences = [f"{path.name}: {sentence}" for sentence in invalid.values()]
    return {name: value for name, value in values.items() if name not in invalid}, sentences


def read_json(path: Path) -> Record:
    """Return the JSON object in a file, or `{}` if there is no file; `DataError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_object(path)
    except UNREADABLE as error:
        raise DataError(
            f"{path.name} is not a valid JSON object: {error}.",
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


def read_table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of a run's configuration, empty if there is none or it is another type."""
    table = config.get(name)
    return table if isinstance(table, Mapping) else {}


def read_metrics(path: Path) -> list[Record]:
    """Return rows of a metrics file in order, each with its `step`: all of them, or evenly spaced ones of a long file.

    Of more than 4,000 rows, and separately of more than 4,000 rows with the score of a validation, only every second
    one is kept, or every fourth and so on, and always the last: enough for plots, and quick for millions of rows. A
    last line that a crash has cut short is ignored; any other invalid line raises `DataError`.
    """
    rows, lines = [], _sampled_lines(path)
    for number, line in lines:
        try:
            rows.append(parse_json(line))
        except UNREADABLE as error:
            if (number, line) != lines[-1]:
                raise DataError(f"Line {number} is not JSON.", where=str(path), remedy="remove the line") from error
    numbers = (
        {name: value for name, value in row.items() if _is_number_or_null(value)}
        for row in rows
        if isinstance(row, dict)
    )
    return [row for row in numbers if row.get("step") is not None]


def _sampled_lines(path: Path) -> list[tuple[int, bytes]]:
    """Return evenly spaced lines of a metrics file and its last one, each with its number; read in one pass."""
    every, validated = _Sample(), _Sample()
    number, line = 0, b""
    try:
        if not path.exists():
            return []
        require_regular(path)
        with path.open("rb") as file:
            while line_read := file.readline(_MAX_LINE + 1):
                if len(line_read) > _MAX_LINE:
                    raise ValueError(f"line {number + 1} has more than {_MAX_LINE:,} bytes")
                number += 1
                line = line_read
                every.add(number, line)
                if _VALIDATED in line:
                    validated.add(number, line)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    lines = {**dict(every.items), **dict(validated.items), **({number: line} if number else {})}
    return [(number, line) for number, line in sorted(lines.items()) if line.strip()]


class _Sample:
    """Evenly spaced items of a sequence of unknown length: when it is full, every second item is dropped."""

    def __init__(self) -> None:
        self.items: list[tuple[int, bytes]] = []
        self._seen, self._stride = 0, 1

    def add(self, number: int, line: bytes) -> None:
        """Keep a line if its turn has come."""
        if self._seen % self._stride == 0:
            self.items.append((number, line))
            if len(self.items) > _MAX_ROWS:
                self.items = self.items[::2]
                self._stride *= 2
        self._seen += 1


def _is_number_or_null(value: object) -> bool:
    """Return whether a value is a number, or the null that JSON has in place of a number that is not finite."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def read_text(path: Path) -> str:
    """Return a text file without surrounding space, or `""` if there is no file; `DataError` if it is unreadable."""
    try:
        return read_regular_file(path).decode("utf-8", "replace").strip() if path.exists() else ""
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path.name} cannot be read: {error}", where=str(path), remedy="replace or remove the file")


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


def scale_fields(kind: TaskKind) -> Record:
    """Return the fields of a record from which its scores can be printed and compared without the plugin."""
    scale = asdict(kind.scale) | ({"examples": ""} if kind.classes else {})
    return {"metric": scale.pop("metric"), "scale": scale}


def scale_of(record: Mapping[str, Any]) -> Scale:
    """Return how the scores of an evaluation read; records without it are older, and of one of two kinds of task."""
    if record.get("scale") is None:
        return OLD_SCALES[record["metric"]]
    return Scale(record["metric"], **record["scale"])


def shape_text(record: Mapping[str, Any]) -> str:
    """Return the shape of an evaluation's tasks in words, e.g. `5-way 1-shot`, `10 points` or `5 to 50 ways, …`."""
    if examples := scale_of(record).examples:
        return f"{record['shots']} {examples}"
    if record.get("varied"):
        ways, support = (range_text(record["varied"][name]) for name in ("ways", "support"))
        return f"{ways} ways, {support} support examples"
    return f"{record['ways']}-way {record['shots']}-shot"


def queries_text(record: Mapping[str, Any]) -> str:
    """Return the number of queries per class of an evaluation's tasks, e.g. `15` or `2 to 10`."""
    return range_text(record["varied"]["queries"]) if record.get("varied") else str(record["queries"])


def caption(record: Mapping[str, Any]) -> str:
    """Return the title of a plot of an evaluation: data set, learner, shape and split."""
    return f"{record['dataset']} · {record['learner']} · {shape_text(record)} · {record['split']} split"
