"""The settings of a run that belong to no plugin, each with its type, bounds, default value and description."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from metaforge.config.durations import Budget, Interval, seconds

Count = Annotated[int, Field(ge=1)]
# A count of things that are in memory at the same time.
MAX_SIZE = 100_000
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
# A pattern of names of values, such as `model.0.*`. Without quotes, so that it can be a quoted key in a path.
NamePattern = Annotated[str, Field(pattern=r"^[^\"']+$", max_length=1000)]
# One size, or several of which each outer step uses one.
Sizes = Size | Annotated[list[Size], Field(min_length=1, max_length=100)]
Sampler = Literal["fixed", "varied"]
# Names of splits become part of file names: without separators, and without a dot at the start.
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)]


class Section(BaseModel):
    """Base of the sections: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskConfig(Section):
    """The shape of the tasks that the learner is evaluated on, and by default trained on."""

    ways: Size = Field(default=5, description="Classes per task (1 in regression).")
    shots: Size = Field(default=1, description="Support examples per class.")
    queries: Size = Field(default=15, description="Query examples per class.")
    sampler: Sampler = Field(
        default="fixed",
        description="Whether all tasks have this shape, or their numbers of classes and examples vary within the bounds"
        " of `varied`.",
    )


class VariedConfig(Section):
    """Tasks whose numbers of classes and examples vary, if a sampler is `varied`."""

    min_ways: Annotated[Size, Field(ge=2)] = Field(default=5, description="Smallest number of classes per task.")
    max_ways: Annotated[Size, Field(ge=2)] = Field(
        default=50, description="Largest number of classes per task; fewer if the split has fewer."
    )
    queries: Size = Field(
        default=10, description="Largest number of query examples per class; at most half of the smallest class."
    )
    support: Size = Field(default=500, description="Largest number of support examples per task.")
    class_support: Size = Field(
        default=100, description="Examples of a class that count when the size of a support set is drawn."
    )
    imbalance: float = Field(
        default=2.0,
        ge=1,
        le=1000,
        description="Largest factor by which chance changes the share of a class in the support set; with 1, shares are"
        " those of the sizes of the classes.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> VariedConfig:
        """Check that a task can have its smallest number of classes, and one support example of each class."""
        if not self.min_ways <= self.max_ways <= self.support:
            raise ValueError(
                f"min_ways ({self.min_ways}), max_ways ({self.max_ways}) and support ({self.support}) should not"
                " decrease in this order"
            )
        return self


class GroupConfig(Section):
    """A group of parameters in the outer optimiser, with settings of its own."""

    lr: float | None = Field(default=None, gt=0, le=1e6, description="Learning rate; if not set, `train.lr`.")
    weight_decay: float | None = Field(default=None, ge=0, description="If not set, `train.weight_decay`.")
    min: float | None = Field(default=None, description="Lower bound, applied after each step.")
    max: float | None = Field(default=None, description="Upper bound, applied after each step.")

    @model_validator(mode="after")
    def _require_ordered_bounds(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g} and must not be larger than max, which is {self.max:g}")
        return self


class TrainConfig(Section):
    """The outer loop of meta-training."""

    steps: int = Field(default=1000, ge=0, description="Outer steps, that is, updates of the meta-parameters.")
    tasks: Size = Field(default=16, description="Tasks per outer step.")
    budget: Annotated[float | None, BeforeValidator(seconds, json_schema_input_type=Budget)] = Field(
        default=None, gt=0, description="Stop after this time: a number of seconds, or a text such as 10m."
    )
    accumulate: Size = Field(
        default=1, description="Batches of `tasks` tasks per outer step; the step takes the mean of their gradients."
    )
    lr: float = Field(default=1e-3, gt=0, le=1e6, description="Learning rate of the outer optimiser.")
    warmup: int = Field(
        default=0,
        ge=0,
        description="First outer steps, over which the learning rate rises linearly; the schedule multiplies it.",
    )
    clip: float | None = Field(
        default=None, gt=0, description="Largest norm of the meta-gradient; a larger one is scaled down to it."
    )
    clip_value: float | None = Field(
        default=None, gt=0, description="Largest magnitude of an entry of the meta-gradient, after `clip`."
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="Weight decay of the outer optimiser; if not set, the optimiser's own default."
    )
    groups: dict[NamePattern, GroupConfig] = Field(
        default={},
        description="Settings of the parameters whose names match a pattern, such as `adapters.*`. Of several patterns"
        " that match, the last applies; one that is set again, as on the command line, keeps its place.",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="Whether a step that diverges or is not finite ends the run or is skipped."
    )
    # Bounded, because a checkpoint lists the skipped steps.
    skip_limit: int = Field(default=10, ge=0, le=100_000, description="Steps that may be skipped before the run ends.")
    divergence: float | None = Field(
        default=1e6,
        gt=1,
        description="Largest norm of the meta-gradient, in multiples of its running median; a larger one has diverged.",
    )
    ways: Sizes | None = Field(
        default=None,
        description="Classes per training task; if not set, those of `task`. Of a list, each outer step draws one.",
    )
    shots: Sizes | None = Field(
        default=None,
        description="Support examples per class in training; if not set, those of `task`. Of a list, each outer step"
        " draws one.",
    )
    queries: Sizes | None = Field(
        default=None,
        description="Query examples per class in training; if not set, those of `task`. Of a list, each outer step"
        " draws one.",
    )
    together: bool = Field(
        default=False,
        description="Whether lists of ways, shots and queries have equal lengths and each outer step draws one place"
        " in all of them.",
    )
    sampler: Sampler | None = Field(
        default=None,
        description="Whether training tasks have this shape or vary within the bounds of `varied`; if not set, as those"
        " of `task`.",
    )
    order: Literal["fresh", "stream"] = Field(
        default="fresh",
        description="Whether every outer step has new tasks, or one new task arrives in each round and the steps draw"
        " from all that have arrived (online meta-learning).",
    )
    round: Count = Field(default=10, description="Outer steps per round, if `order` is `stream`.")
    proficiency: float | None = Field(
        default=None,
        description="Score of a proficient learner: each round of a stream records with how many examples per class its"
        " new task reaches it.",
    )
    validate_every: int = Field(default=0, ge=0, description="Outer steps between validations; 0 for none.")
    validate_tasks: int = Field(default=100, ge=2, description="Tasks per validation.")
    log_every: Count = Field(default=20, description="Outer steps between records of the metrics.")
    init_from: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="Folder of a run whose values are the initial ones, where names and shapes fit; read once, when the"
        " run begins.",
    )
    init_patterns: list[NamePattern] = Field(
        default=[],
        max_length=1000,
        description="Which values `init_from` takes over, as patterns of their names; if empty, all that fit. The"
        " pattern 'model.* -> model.0.*' takes them under other names. Of several patterns that give a value, the last"
        " applies.",
    )
    freeze: list[NamePattern] = Field(
        default=[],
        max_length=1000,
        description="Values that stay as they are, as patterns of their names: no optimiser, no inner loop and no"
        " running average changes them.",
    )

    @field_validator("init_patterns")
    @classmethod
    def _require_source(cls, patterns: list[str], info: ValidationInfo) -> list[str]:
        if patterns and info.data.get("init_from") is None:
            raise ValueError("there is no run to take values from; set train.init_from to its folder")
        return patterns

    @model_validator(mode="after")
    def _require_equal_lengths(self) -> Self:
        """Check that lists of ways, shots and queries that are drawn from together have one length."""
        lists = {name: getattr(self, name) for name in ("ways", "shots", "queries")}
        lengths = {name: len(sizes) for name, sizes in lists.items() if isinstance(sizes, list) and len(sizes) > 1}
        if self.together and len({*lengths.values()}) > 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"together needs lists of equal lengths, but of their numbers {found}")
        return self


class CheckpointConfig(Section):
    """When the state of the run is saved, and how many checkpoints are kept."""

    every: Count | None = Field(
        default=None, description="Outer steps between checkpoints; if not set, `interval` decides."
    )
    interval: Annotated[float, BeforeValidator(seconds, json_schema_input_type=Interval)] = Field(
        default=60.0,
        ge=0,
        description="Time between checkpoints if `every` is not set: seconds, or a text such as 10m.",
    )
    keep: Count = Field(default=2, description="Checkpoints to keep, in addition to the best in validation.")


class EvaluateConfig(Section):
    """The evaluation after training."""

    tasks: Count = Field(default=1000, description="Tasks to evaluate on; papers use at least 600.")
    split: SplitName = Field(default="test", description="Split of the data set to evaluate on.")
    seed: int = Field(default=1_000_003, ge=0, lt=2**63, description="Seed of the evaluation's tasks.")
    shots: list[Size] = Field(
        default=[],
        description="Support examples per class, one evaluation each, on tasks of that shape; if empty, as `task`.",
    )
    steps: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="Numbers of adaptation steps, one evaluation each; if empty, 0 and the learner's own number.",
    )


class EngineConfig(Section):
    """How the computation is carried out: this changes speed and memory, but results only by rounding."""

    plan: Literal["auto", "loop", "vmap", "fold"] = Field(
        default="auto",
        description="How a batch of tasks is computed: one by one, vectorised, or folded into one large batch.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether the training step is compiled; auto: if the run is long enough for it to save time.",
    )
    chunk: Count | None = Field(
        default=None, description="Tasks computed together, which bounds memory; if not set, chosen automatically."
    )
    reduce: Literal["fast", "exact"] = Field(
        default="fast",
        description="How processes sum their gradients: by the fastest all-reduce, or in a fixed order that gives the"
        " same bits for any number of processes.",
    )
    shards: Count = Field(
        default=4, description="Groups of tasks whose sums are added in a fixed order if `reduce` is `exact`."
    )
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32",
        description="Precision of the computation; with bfloat16, parameters stay float32 and only products are"
        " computed in bfloat16.",
    )
    tf32: bool = Field(default=False, description="Whether a GPU may round float32 products to TF32 in training.")
    verify: Literal["auto", "always", "off"] = Field(
        default="auto",
        description="Whether a network is compared with plain PyTorch before a run; auto: one that is not MetaForge's,"
        " once for each network and plan.",
    )
    # Bounded, because tens of thousands of threads end the process with a segmentation fault.
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads; if not set, chosen automatically."
    )


class RunConfig(Section):
    """All settings of a run except those of its plugins."""

    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of the initial values, the training tasks and the noise."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="Where to compute.")
    task: TaskConfig = Field(default=TaskConfig(), description="The shape of the tasks.")
    varied: VariedConfig = Field(default=VariedConfig(), description="Tasks of varied shapes.")
    train: TrainConfig = Field(default=TrainConfig(), description="The outer loop.")
    checkpoint: CheckpointConfig = Field(
        default=CheckpointConfig(), description="The checkpoints saved during the run."
    )
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="The evaluation after training.")
    engine: EngineConfig = Field(default=EngineConfig(), description="How the computation is carried out.")
