"""The rounds of a run on a stream of tasks: the regret, the examples that a new task needs, and their plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import task_kind, task_loss
from metaforge.authoring.protocols import TaskShape
from metaforge.authoring.scale import Scale
from metaforge.data.batches import episode_batches
from metaforge.engine import plans
from metaforge.engine.batch import prepare_tasks, score_tasks
from metaforge.errors import DataError
from metaforge.results.canvas import BLUE, GREEN, INK, VERMILION, new_figure, save_png
from metaforge.results.evaluation_cases import TrainedRun
from metaforge.results.records import PICTURES, path_inside, read_metrics, read_text, write_in_folder
from metaforge.results.tables import markdown_table

FILE = "stream.json"
Floats = NDArray[np.float64]
Values = Annotated[list[float | None], Field(max_length=8000)]


class StreamRecord(BaseModel):
    """What a run on a stream of tasks did in each of its rounds.

    Attributes:
        rounds: The numbers of the rounds, ascending.
        loss: The query loss of each round's task, before anything was learned from it.
        score: Its score.
        examples: The support examples per class with which it reaches the proficiency; None where it does not.
        hindsight: The query loss of each task with the values at the end of the run.
        proficiency: The score to reach; None if there is none.
        shots: Support examples per class.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rounds: Annotated[list[int], Field(min_length=1, max_length=8000)]
    loss: Values
    score: Values
    examples: Values
    hindsight: Values
    proficiency: float | None
    shots: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _of_equal_lengths(self) -> StreamRecord:
        if any(len(values) != len(self.rounds) for values in (self.loss, self.score, self.examples, self.hindsight)):
            raise ValueError("the lists have different lengths")
        return self

    def regret(self) -> Floats:
        """Return the regret per round `[rounds]`: the mean, so far, of the loss beyond that with the last values."""
        excess = _floats(self.loss) - _floats(self.hindsight)
        mean: Floats = np.nancumsum(excess) / np.maximum(np.cumsum(np.isfinite(excess)), 1)
        return mean


def write_stream(run: TrainedRun) -> StreamRecord | None:
    """Write `stream.json` of a run on a stream of tasks, and return what is in it; None for any other run."""
    if run.folder is None or run.resolved.run.train.order != "stream":
        return None
    rows = [row for row in read_metrics(run.folder / "metrics.jsonl") if row.get("round") is not None]
    if not rows:
        return None
    numbers = [int(row["round"]) for row in rows]
    train, task = run.resolved.run.train, run.resolved.run.task
    shape = TaskShape(*(getattr(train, name) or getattr(task, name) for name in TaskShape._fields))
    record = StreamRecord(
        rounds=numbers,
        loss=[row.get("round_loss") for row in rows],
        score=[row.get("round_score") for row in rows],
        examples=[row.get("round_examples") for row in rows],
        hindsight=_losses(run, shape, numbers),
        proficiency=train.proficiency,
        shots=shape.shots,
    )
    write_in_folder(run.folder / FILE, record.model_dump_json(indent=1) + "\n", run_folder=run.folder)
    return record


def _losses(run: TrainedRun, shape: TaskShape, numbers: Sequence[int]) -> list[float | None]:
    """Return the query loss of tasks of the training split with the run's values, None where it is not finite."""
    kind, seed = task_kind(run.dataset.kind), run.resolved.run.seed
    with run.resolved.running_errors("evaluation", "of the rounds"):
        spec = run.dataset.spec("train", shape)
        learner, losses = run.learner(spec), list[float | None]()
        size = plans.choose_chunk(spec, run.device, None, training=False)
        for first in range(0, len(numbers), size):
            own = numbers[first : first + size]
            (batch,) = episode_batches(run.dataset, "train", spec, None, range(len(own)), seed=seed, numbers=own)
            tasks = prepare_tasks(batch.tasks, run.device, run.dtype)
            keys = torch.stack([make_key(seed, "round", number) for number in own]).to(run.device)
            found = score_tasks(learner, run.values, tasks, keys, kind=kind, outputs=spec.outputs)
            for prediction, y in zip(found.predictions, tasks.query.y, strict=True):
                loss = float(task_loss(kind, prediction, y))
                losses.append(loss if np.isfinite(loss) else None)
    return losses


def read_stream(folder: Path) -> StreamRecord | None:
    """Return the record in a run folder; None if there is none. Raises `DataError` if it is not valid."""
    text = read_text(folder / FILE)
    if not text:
        return None
    try:
        return StreamRecord.model_validate_json(text)
    except ValidationError as error:
        raise DataError(
            f"{FILE} is not the record of a stream: {error.errors()[0]['msg']}.",
            where=str(folder / FILE),
            remedy="delete it; `metaforge evaluate` writes it again",
        ) from error


def stream_section(record: StreamRecord) -> list[str]:
    """Return the section of a report on the rounds: means over each quarter of them, and the regret at its end."""
    quarters = [part for part in np.array_split(np.arange(len(record.rounds)), 4) if len(part)]
    regret, rows = record.regret(), list[list[str]]()
    for part in quarters:
        row = [f"{record.rounds[part[0]]} to {record.rounds[part[-1]]}"]
        row += [_mean(_floats(values)[part]) for values in (record.loss, record.score, record.hindsight)]
        row.append(f"{regret[part[-1]]:.3g}")
        if record.proficiency is not None:
            examples = _floats(record.examples)[part]
            row += [_mean(examples), f"{np.isfinite(examples).mean():.0%}"]
        rows.append(row)
    columns = ["rounds", "loss of the new task", "score", "loss in hindsight", "regret per round, so far"]
    if record.proficiency is not None:
        columns += [f"examples per class to {record.proficiency:g}", f"reached with {record.shots} or fewer"]
    text = (
        "In each round a task arrives, and is scored before anything is learned from it. The loss in hindsight is that"
        " of the same task with the values at the end of the run; the regret is the mean difference of the two."
    )
    return ["## Rounds", text, markdown_table(columns, rows)]


def stream_plot(record: StreamRecord, out: Path, *, title: str, scale: Scale) -> None:
    """Plot the score of each new task, the examples that it needed, and the regret, against the round."""
    with_examples = record.proficiency is not None
    figure = new_figure(7.2, 7.2 if with_examples else 5.2, title)
    axes = list(figure.subplots(3 if with_examples else 2, 1, sharex=True, squeeze=False)[:, 0])
    _points(axes[0], record.rounds, _floats(record.score), BLUE, "new task")
    axes[0].set_ylabel(scale.title)
    if not scale.higher_is_better:
        axes[0].set_yscale("log")
    if with_examples:
        examples = _floats(record.examples)
        _points(axes[1], record.rounds, examples, GREEN, f"examples per class to {record.proficiency:g}")
        missed = [number for number, value in zip(record.rounds, examples, strict=True) if not np.isfinite(value)]
        axes[1].plot(missed, [record.shots + 1] * len(missed), "x", color=VERMILION, ms=4, label="not reached")
        axes[1].set_ylabel("examples per class")
        axes[1].legend(frameon=False, loc="best", fontsize=9)
    axes[-1].plot(record.rounds, record.regret(), color=INK, lw=1.6)
    axes[-1].axhline(0.0, color=INK, lw=0.8, ls=":")
    axes[-1].set_ylabel("regret per round")
    axes[-1].set_xlabel("round")
    axes[0].legend(frameon=False, loc="best", fontsize=9)
    save_png(figure, out)


def draw_stream(run: TrainedRun, title: str) -> list[Path]:
    """Write the record of a run on a stream and plot it; return the path of the plot."""
    record = write_stream(run)
    if record is None or run.folder is None:
        return []
    out = path_inside(run.folder, PICTURES, "rounds.png")
    stream_plot(record, out, title=title, scale=task_kind(run.dataset.kind).scale)
    return [out]


def _points(ax: Axes, rounds: Sequence[int], values: Floats, colour: str, label: str) -> None:
    """Plot values as points, with the mean of a tenth of the rounds as a line."""
    ax.plot(rounds, values, ".", color=colour, ms=4, alpha=0.4, label=label)
    width = max(len(rounds) // 10, 1)
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, "valid")
    count = np.convolve(finite.astype(float), window, "valid")
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    ax.plot(rounds[width - 1 :], mean, color=colour, lw=1.8, label=f"mean of {width} rounds")


def _mean(values: Floats) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.3g}" if len(finite) else "–"


def _floats(values: Sequence[Any]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
