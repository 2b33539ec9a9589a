"""The schemas of the JSON files in a run folder, which are untrusted until they have been compared with them.

A run folder may come from somebody else. File names, pictures and pages are made from what its records contain, so
every field has a strict type and bounds, and no value reaches them unchecked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metaforge.authoring.scale import ACCURACY, MEAN_SQUARED_ERROR, Scale
from metaforge.config.problems import location_in, sentence
from metaforge.config.settings import MAX_SIZE, SplitName

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
SizeOrZero = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Range = Annotated[list[Size], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Sentences = Annotated[str, Field(max_length=100_000)]
Duration = Annotated[float, Field(ge=0, le=1e12)]
PerTask: TypeAlias = list[float | None]
# The scales of records that have none, by metric.
OLD_SCALES: Mapping[str, Scale] = MappingProxyType({scale.metric: scale for scale in (ACCURACY, MEAN_SQUARED_ERROR)})


class Record(BaseModel):
    """Base of the schemas: no conversion between types, no unknown fields, no NaN and no infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class EstimateRecord(Record):
    """A mean over tasks with standard deviation and half width of its interval; None where there is none."""

    mean: float | None
    sd: Annotated[float, Field(ge=0)] | None
    ci: Annotated[float, Field(ge=0)] | None
    tasks: Count


class StepScoreRecord(EstimateRecord):
    """The score after a number of adaptation steps; None for a learner that does not adapt in steps."""

    steps: Count | None


class PerTaskRecord(Record):
    """The values of every task, in the order of the episodes; of varied tasks, their sizes too."""

    chance: PerTask
    floor: PerTask
    scores: dict[str, PerTask]
    measures: dict[str, PerTask]
    ways: list[Size] = []
    support: list[Size] = []
    queries: list[Size] = []


class VariedRecord(Record):
    """The smallest and the largest size of varied tasks: classes, support examples, and queries per class."""

    ways: Range
    support: Range
    queries: Range


class ScaleRecord(Record):
    """How the scores of an evaluation read: the fields of a `Scale`, but its metric."""

    higher_is_better: bool
    words: str
    percent: bool
    unit: str
    minimum: float | None
    counts: bool
    chance: str
    floor: str
    examples: str


class EvaluationRecord(Record):
    """`evaluation/<split>-<ways>w<shots>s.json`, or `<split>-varied.json`: the scores on tasks of one shape, or varied.

    The ways, shots and queries of varied tasks are 0; `varied` and `per_task` have their sizes.
    """

    format: Literal[1]
    learner: Name
    dataset: Name
    step: Count | None = None
    damaged: list[Sentences] = []
    split: SplitName
    seed: Count
    tasks: Annotated[int, Field(ge=1, lt=2**63)]
    ways: SizeOrZero
    shots: SizeOrZero
    queries: SizeOrZero
    varied: VariedRecord | None = None
    kind: Name
    metric: Name
    # Absent in older records, which are of classification or regression.
    scale: ScaleRecord | None = None
    norm: Name
    transductive: bool
    note: Sentences
    warn: Sentences
    own_steps: Count | None
    # None where the kind of task has none; the list of the tasks' values is then empty.
    chance: EstimateRecord | None
    floor: EstimateRecord | None
    scores: list[StepScoreRecord] = Field(min_length=1)
    measures: dict[str, EstimateRecord]
    per_task: PerTaskRecord

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationRecord:
        """Check what fields have in common: the plots rely on it."""
        labels = [step_label(score.steps) for score in self.scores]
        if len({*labels}) < len(labels) or {*labels} != self.per_task.scores.keys():
            raise ValueError("scores and per_task.scores should have the same numbers of steps, each once")
        if self.measures.keys() != self.per_task.measures.keys():
            raise ValueError("measures and per_task.measures should have the same names")
        given = {"chance": self.chance, "floor": self.floor}
        baselines = [getattr(self.per_task, name) for name, estimate in given.items() if estimate is not None]
        values = (*baselines, *self.per_task.scores.values())
        sizes = (self.per_task.ways, self.per_task.support, self.per_task.queries)
        columns = (*values, *self.per_task.measures.values(), *(sizes if self.varied else ()))
        if any(len(column) != self.tasks for column in columns):
            raise ValueError(f"each list in per_task should have one value for each of the {self.tasks} tasks")
        if {bool(size) for size in (self.ways, self.shots, self.queries)} != {self.varied is None}:
            raise ValueError("ways, shots and queries should be 0 for varied tasks, and for no others")
        if any(getattr(self.per_task, name) for name, estimate in given.items() if estimate is None):
            raise ValueError("a baseline that is null should have no values in per_task")
        means = [one.mean for one in (*given.values(), *self.scores) if one is not None]
        lower, upper = self._bounds()
        if not all(lower <= value <= upper for column in (means, *values) for value in column if value is not None):
            raise ValueError(f"every score should be between {lower:g} and {upper:g}")
        return self

    def _bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest score that the scale allows, and that can be drawn on an axis."""
        if self.scale is None and self.metric not in OLD_SCALES:
            raise ValueError(f"scale is missing, and the metric is none of {', '.join(OLD_SCALES)}")
        scale = OLD_SCALES[self.metric] if self.scale is None else Scale(self.metric, **self.scale.model_dump())
        lower, upper = scale.bounds
        return -_LARGEST_SCORE if lower is None else lower, _LARGEST_SCORE if upper is None else upper


# Squares of single-precision numbers are far below; larger scores cannot be drawn on an axis.
_LARGEST_SCORE = 1e200


class ResumeRecord(BaseModel):
    """What `status.json` records about a resume; further facts are only kept, not used."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    step: Count = 0
    differences: list[Sentences] = []


class StatusRecord(BaseModel):
    """`status.json`: how the run ended, or that it still runs. Hooks may add further facts."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    outcome: Literal["running", "finished", "stopped", "failed"] = "running"
    updated: Name = "never"
    exit_code: Annotated[int, Field(ge=0, le=255)] = 0
    error: Sentences = ""
    steps: Count = 0
    seconds: Duration | None = None
    loss: float | None = None
    score: float | None = None
    tasks_per_second: float | None = None
    skipped: list[Count] = []
    resumed: ResumeRecord | None = None


class EnvironmentRecord(BaseModel):
    """`env.json`: the machine, the versions and the plugins of the run. Hooks may add further facts."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    python: Name = "unknown"
    torch: Name = "unknown"
    platform: Name = "unknown"
    processor: Sentences | None = None
    cores: Count | None = None
    threads: Count | None = None
    cuda: bool | Name = False
    plugins: dict[str, Name] = {}


def step_label(steps: int | None) -> str:
    """Return the name under which a record has the values of every task after a number of adaptation steps."""
    return "after" if steps is None else str(steps)


def problems(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, str]:
    """Return a sentence for each invalid field of a record, by the name of the field; empty if there is none.

    A problem that concerns several fields has the name `""`.

    Example:
        >>> from metaforge.results.record_schema import StatusRecord, problems
        >>> problems(StatusRecord, {"outcome": "finished", "steps": -1})
        {'steps': 'steps is -1, but should be greater than or equal to 0.'}
    """
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        # A value of a union has an error for each member: they are at one location.
        by_location: dict[tuple[str, ...], list[Any]] = {}
        for details in error.errors(include_url=False):
            by_location.setdefault(location_in(values, details) or tuple(map(str, details["loc"])), []).append(details)
        sentences: dict[str, str] = {}
        for location, group in by_location.items():
            sentences.setdefault(location[0] if location else "", _sentence(location, group))
        return sentences
    return {}


def _sentence(location: Sequence[str], group: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on the invalid value at a location."""
    path, details = ".".join(part[:100] for part in location), group[0]
    if details["type"] == "missing":
        return f"{path} is missing."
    if details["type"] == "extra_forbidden":
        return f"{path} is unknown."
    return sentence(path, group) if path else f"{details['msg'].removeprefix('Value error, ')}."
