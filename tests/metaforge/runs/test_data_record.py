"""What a run folder records of its data set, and how the record is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from metaforge.authoring import REGRESSION, TaskShape, TaskSpec
from metaforge.errors import ContractError, DataError
from metaforge.runs.data_record import FILE, data_record, read_data_record
from metaforge.testing.toy import ToyClasses, ToyTasksOptions

SHAPE = TaskShape(5, 1, 15)
SPEC = TaskSpec("classification", (1, 28, 28), 5, SHAPE)


class Named(ToyClasses):
    """A data set with the class names of a list."""

    note = "toys"
    names: Any = ("ant", "bee")

    def class_names(self, split: str) -> Sequence[str]:
        return list(self.names) if isinstance(self.names, tuple) else self.names


def dataset(names: Any = Named.names) -> Named:
    built = Named(ToyTasksOptions(), root=Path())
    built.names = names
    return built


def written(folder: Path, **changes: Any) -> None:
    record = data_record(dataset(), [("train", SPEC)]).model_dump(mode="json")
    (folder / FILE).write_text(json.dumps(record | changes))


def test_a_record_that_is_read_equals_the_one_written(tmp_path: Path) -> None:
    more = TaskSpec("classification", (1, 28, 28), 5, SHAPE._replace(shots=5))
    record = data_record(dataset(), [("train", SPEC), ("test", SPEC), ("test", more), ("train", SPEC)])
    (tmp_path / FILE).write_text(json.dumps(record.model_dump(mode="json")))
    assert read_data_record(tmp_path) == record
    assert len(record.specs) == 3
    assert record.spec(more.kind, "test", more.shape) == more
    assert record.spec(more.kind, "val", SHAPE) is record.spec(REGRESSION, "test", more.shape) is None
    varied = TaskSpec("classification", (1, 28, 28), 9, TaskShape(9, 0, 0), 100)
    with_varied = data_record(dataset(), [("test", SPEC), ("test", varied)])
    assert with_varied.varied_spec(varied.kind, "test") == varied
    assert with_varied.varied_spec(varied.kind, "train") is record.varied_spec(varied.kind, "test") is None
    assert (record.note, record.classes) == ("toys", {"train": ["ant", "bee"], "test": ["ant", "bee"]})


def test_the_spec_of_another_shape_follows_from_a_recorded_one() -> None:
    three = TaskShape(3, 2, 1)
    for recorded in (SPEC, TaskSpec("classification", (1, 28, 28), 9, TaskShape(9, 0, 0))):
        record = data_record(dataset(), [("test", recorded)])
        assert record.spec(SPEC.kind, "test", three) == TaskSpec("classification", (1, 28, 28), 3, three)
    own = TaskSpec("classification", (2,), 5, SHAPE._replace(shots=2))
    assert data_record(dataset(), [("test", SPEC), ("test", own)]).spec(SPEC.kind, "test", own.shape) == own
    # The outputs of other kinds are not their ways, but do not depend on the number of examples.
    curves = TaskSpec(REGRESSION, (1,), 2, TaskShape(1, 10, 10))
    record = data_record(dataset(), [("test", curves)])
    assert record.spec(REGRESSION, "test", TaskShape(1, 5, 1)) == TaskSpec(REGRESSION, (1,), 2, TaskShape(1, 5, 1))
    assert record.spec(REGRESSION, "test", TaskShape(2, 5, 1)) is None


def test_a_folder_without_a_record_is_one_of_an_earlier_version(tmp_path: Path) -> None:
    assert read_data_record(tmp_path) is None


def test_what_is_beyond_the_bounds_is_left_out() -> None:
    huge = TaskSpec("classification", (2**13, 2**13), 5, SHAPE)
    many = tuple(str(number) for number in range(100_001))
    record = data_record(dataset(many), [("train", huge), ("test", SPEC)])
    assert [spec.split for spec in record.specs] == ["test"]
    assert record.classes == {"test": []}


@pytest.mark.parametrize("names", ["ant", 3, (1, 2), ("ant", ""), ("x" * 1001,), None])
def test_class_names_that_are_no_names_break_the_contract(names: Any) -> None:
    with pytest.raises(ContractError, match="class_names"):
        data_record(dataset(names), [("train", SPEC)])


EVIL = {"split": "train", "kind": "classification", "x_shape": [1], "outputs": 5, "ways": 5, "shots": 1, "queries": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format is 2"),
        ({"extra": 1}, "extra is unknown"),
        ({"specs": [EVIL | {"split": "../../x"}]}, "specs.0.split is '../../x'"),
        ({"specs": [EVIL | {"x_shape": [2**13, 2**13]}]}, "no more than 16,777,216 numbers"),
        ({"specs": [EVIL | {"x_shape": [0]}]}, "specs.0.x_shape.0 is 0"),
        ({"specs": [EVIL | {"outputs": 10**9}]}, "specs.0.outputs"),
        ({"specs": [EVIL | {"kind": 5}]}, "specs.0.kind"),
        ({"classes": {"train": [1]}}, "classes.train.0 is 1"),
        ({"note": 1}, "note is 1"),
    ],
)
def test_an_invalid_record_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        read_data_record(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"format": ' + "[" * 50])
def test_a_file_that_is_no_json_object_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=r"data.json is not a valid JSON object"):
        read_data_record(tmp_path)
