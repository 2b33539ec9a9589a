"""`data.json`: what a run needs of its data set to be loaded and applied where the data set is missing.

It has the specs of the run's tasks, the names of the classes and the data set's note. Like everything in a run folder
it may come from somebody else, and is compared with its schema before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from metaforge.authoring.kinds import TaskKind
from metaforge.authoring.protocols import Dataset, TaskShape, TaskSpec
from metaforge.config.settings import SplitName
from metaforge.errors import ContractError, DataError
from metaforge.results.record_schema import Name, Record, Sentences, Size, SizeOrZero, problems
from metaforge.results.records import read_json

FILE = "data.json"
# The most classes of a split whose names are recorded, and the most numbers in an input whose shape is.
_MOST_CLASSES, _MOST_NUMBERS = 100_000, 2**24
_MOST_TEXT = 100_000


class SpecRecord(Record):
    """The spec of the tasks of one split and shape."""

    split: SplitName
    kind: Name
    x_shape: list[Annotated[int, Field(ge=1, le=_MOST_NUMBERS)]] = Field(max_length=8)
    outputs: Size
    class_count: int = Field(default=0, ge=0, le=_MOST_NUMBERS)
    ways: Size
    shots: SizeOrZero
    queries: SizeOrZero

    @field_validator("x_shape")
    @classmethod
    def _small(cls, value: list[int]) -> list[int]:
        if prod(value) > _MOST_NUMBERS:
            raise ValueError(f"an input should have no more than {_MOST_NUMBERS:,} numbers")
        return value

    @classmethod
    def of(cls, split: str, spec: TaskSpec) -> SpecRecord:
        """Return the record of a spec."""
        shape = spec.shape._asdict()
        x_shape, kind = list(spec.x_shape), spec.kind.name
        return cls(split=split, kind=kind, x_shape=x_shape, outputs=spec.outputs, class_count=spec.classes, **shape)

    def spec(self, kind: TaskKind) -> TaskSpec:
        """Return the spec of tasks of a kind, which the data set's class says: a record has only its name."""
        shape = TaskShape(self.ways, self.shots, self.queries)
        return TaskSpec(kind, tuple(self.x_shape), self.outputs, shape, self.class_count)


class DataRecord(Record):
    """The content of `data.json`: the data set's note, the specs of the run's tasks, and the classes of each split."""

    format: Literal[1]
    note: Sentences
    specs: list[SpecRecord] = Field(max_length=1000)
    classes: dict[SplitName, Annotated[list[Name], Field(max_length=_MOST_CLASSES)]]

    def spec(self, kind: TaskKind, split: str, shape: TaskShape) -> TaskSpec | None:
        """Return the spec of the tasks of a kind, split and shape, or None if it cannot be told from the record.

        The number of examples changes nothing else in a spec, and tasks of classes have one output for each of them. So
        a spec of another shape, or of varied tasks, tells it too.
        """
        specs = [one.spec(kind) for one in self.specs if (one.split, one.kind) == (split, kind.name)]
        # One of this very shape comes first, then one of as many ways.
        specs.sort(key=lambda spec: (spec.shape != shape, spec.shape.ways != shape.ways))
        if not specs or not (kind.classes or specs[0].shape.ways == shape.ways):
            return None
        outputs = specs[0].outputs if specs[0].shape.ways == shape.ways else shape.ways
        return replace(specs[0], shape=shape, outputs=outputs)

    def varied_spec(self, kind: TaskKind, split: str) -> TaskSpec | None:
        """Return the spec of the varied tasks of a split with the most ways, or None if it is not recorded."""
        specs = (one.spec(kind) for one in self.specs if (one.split, one.kind, one.shots) == (split, kind.name, 0))
        return next(specs, None)


def data_record(dataset: Dataset, specs: Iterable[tuple[str, TaskSpec]]) -> DataRecord:
    """Return the record of a run's data. Specs and names that are too large for its bounds are left out.

    Args:
        dataset: The data set.
        specs: The specs of the run's tasks, each with its split.

    Raises:
        ContractError: `class_names` of the data set returns something else than names.
    """
    records = []
    for split, spec in dict.fromkeys(specs):
        with suppress(ValidationError):
            records.append(SpecRecord.of(split, spec))
    classes = {split: _class_names(dataset, split) for split in dict.fromkeys(record.split for record in records)}
    return DataRecord(format=1, note=dataset.note[:_MOST_TEXT], specs=records, classes=classes)


def _class_names(dataset: Dataset, split: str) -> list[str]:
    """Return the names of a split's classes; none if there are too many to record."""
    names: Any = dataset.class_names(split)
    is_sequence = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_sequence or not all(isinstance(name, str) and 0 < len(name) <= 1000 for name in names):
        raise ContractError("class_names does not return a sequence of strings of 1 to 1000 characters")
    return list(names) if len(names) <= _MOST_CLASSES else []


def read_data_record(folder: Path) -> DataRecord | None:
    """Return the record in a run folder; None for a folder of a MetaForge that did not write one.

    Raises `DataError` if it is damaged or invalid.
    """
    values = read_json(folder / FILE)
    if not values:
        return None
    if invalid := problems(DataRecord, values):
        raise DataError(
            f"{FILE} is not valid: {next(iter(invalid.values()))}",
            where=str(folder / FILE),
            remedy="restore it from a copy, or remove it: the run can then be used where its data set is",
        )
    return DataRecord.model_validate(dict(values))
