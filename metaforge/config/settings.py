"""The settings of a run that belong to no plugin: every one described, bounded, and refused when it makes no sense."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
# Of what is held in memory at once.
Size = Annotated[int, Field(ge=1, le=100_000)]

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
# What a file may write where seconds are wanted; its schema says so.
Duration = Annotated[str, Field(pattern=rf"^\s*(?=[0-9])(?:{_DURATION.pattern})\s*$")]
Budget = Annotated[float, Field(gt=0)] | Duration | None
Interval = Annotated[float, Field(ge=0)] | Duration


def seconds(value: Any) -> Any:
    """Return the seconds that a text such as `90s`, `10m` or `1h30m` means; anything but text is returned as it is."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip().lower())
    if not value.strip() or match is None:
        raise ValueError(f"{value!r} is not a duration such as 90s, 10m or 1h30m")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + rest


class Section(BaseModel):
    """Base of the sections: an unknown key is refused, as are NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskConfig(Section):
    """The tasks that the run is about: those it is evaluated on."""

    ways: Size = Field(default=5, description="Classes in a task (1 in regression).")
    shots: Size = Field(default=1, description="Support examples per class.")
    queries: Size = Field(default=15, description="Query examples per class.")


class TrainConfig(Section):
    """The outer loop."""

    steps: int = Field(default=1000, ge=0, description="Outer steps, that is, updates of the meta-parameters.")
    tasks: Size = Field(default=16, description="Tasks per outer step.")
    budget: Annotated[float | None, BeforeValidator(seconds, json_schema_input_type=Budget)] = Field(
        default=None, gt=0, description="Stop after this time: seconds, or a text such as 10m."
    )
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="The outer optimiser.")
    lr: float = Field(default=1e-3, gt=0, le=1e6, description="Learning rate of the outer optimiser.")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="How the outer learning rate falls over the run."
    )
    clip: float | None = Field(
        default=None, gt=0, description="Largest norm of the meta-gradient; longer ones are scaled down."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay of the outer optimiser.")
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="What to do with a step whose numbers are not sound: end the run, or leave it out."
    )
    skip_limit: int = Field(default=10, ge=0, description="Steps that may be left out before the run ends.")
    divergence: float | None = Field(
        default=1e6, gt=1, description="Largest norm of the meta-gradient, in multiples of its running median."
    )
    ways: Size | None = Field(
        default=None, description="Classes in a training task; the task's own number where not set."
    )
    shots: Size | None = Field(
        default=None, description="Support examples per class in training; the task's where not set."
    )
    queries: Size | None = Field(
        default=None, description="Query examples per class in training; the task's where not set."
    )
    validate_every: int = Field(default=0, ge=0, description="Outer steps between validations; 0 for none.")
    validate_tasks: int = Field(default=100, ge=2, description="Tasks per validation.")
    log_every: Count = Field(default=20, description="Outer steps between records of the metrics.")


class CheckpointConfig(Section):
    """When what was learned is saved, and how much of it is kept."""

    every: Count | None = Field(default=None, description="Outer steps between checkpoints; by time where not set.")
    interval: Annotated[float, BeforeValidator(seconds, json_schema_input_type=Interval)] = Field(
        default=60.0, ge=0, description="Time between checkpoints where `every` is not set: seconds, or 10m."
    )
    keep: Count = Field(default=2, description="Checkpoints to keep, beside the best in validation.")


class EvaluateConfig(Section):
    """The evaluation after training."""

    tasks: Count = Field(default=1000, description="Tasks to evaluate on; papers use at least 600.")
    split: str = Field(default="test", min_length=1, description="Split of the data set to evaluate on.")
    seed: int = Field(default=1_000_003, ge=0, lt=2**63, description="Seed of the evaluation's tasks.")
    shots: list[Size] = Field(
        default=[], description="Support examples per class, one evaluation each; empty: the task's."
    )
    steps: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="Numbers of adaptation steps, one evaluation each; empty: none and the learner's own number.",
    )


class EngineConfig(Section):
    """How the computation is carried out; it changes speed and memory, not results (beyond rounding)."""

    plan: Literal["auto", "loop", "vmap", "fold"] = Field(
        default="auto", description="How a batch of tasks is computed."
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="Whether the training step is compiled; auto: where that pays back within the run."
    )
    chunk: Count | None = Field(
        default=None, description="Tasks computed together, which bounds memory; chosen where not set."
    )
    reduce: Literal["fast", "exact"] = Field(
        default="fast",
        description="How processes add up their gradients: as fast as they can, or in an order that gives the same bits"
        " for any number of them.",
    )
    shards: Count = Field(
        default=4, description="Groups of tasks whose sums are added in order where reduce is `exact`."
    )
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32",
        description="Precision of the computation; with bfloat16, values stay float32 and products are rounded.",
    )
    tf32: bool = Field(default=False, description="Whether a GPU may round products to TF32.")
    threads: Size | None = Field(default=None, description="CPU threads; torch's own choice where not set.")


class RunConfig(Section):
    """Everything about a run but its plugins."""

    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of the initial values, the training tasks and the noise."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="Where to compute.")
    task: TaskConfig = Field(default=TaskConfig(), description="The tasks that the run is about.")
    train: TrainConfig = Field(default=TrainConfig(), description="The outer loop.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="What is saved during the run.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="The evaluation after training.")
    engine: EngineConfig = Field(default=EngineConfig(), description="How the computation is carried out.")
