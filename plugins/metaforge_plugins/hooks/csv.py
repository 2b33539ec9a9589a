"""Writes all metrics of a run as a table with one row per value: `step,split,metric,value`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from metaforge import hookimpl
from metaforge.authoring import Hook, Options, RunInfo, append_lines, begin_lines

HEADING = "step,split,metric,value"


class Csv(Hook):
    """Appends all metrics to `metrics.csv` in the run folder after each step and evaluation, one row per value.

    The table is in long format, so that its columns stay the same when a metric first appears during the run, such as
    those of the first validation. Non-finite values are written as `nan`, `inf` or `-inf`.
    """

    class Config(Options):
        every: int = Field(default=1, ge=1, description="Number of steps between records of the training metrics.")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._path: Path | None = None

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Create the table, or in a resumed run remove the rows of later steps."""
        self._path = None if run.folder is None else run.folder / "metrics.csv"
        if self._path is not None:
            begin_lines(
                self._path, start=run.start, step_of=lambda line: int(line.partition(",")[0]), heading=[HEADING]
            )

    @hookimpl
    def metaforge_after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the training metrics every `every` steps."""
        if step % self.config.every == 0:
            self._write(step, "train", metrics)

    @hookimpl
    def metaforge_after_eval(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Append the metrics of an evaluation."""
        self._write(step, split, metrics)

    def _write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self._path is not None and metrics:
            append_lines(self._path, [row(step, split, name, value) for name, value in metrics.items()])


def row(step: int, split: str, name: str, value: float) -> str:
    """Return one row in CSV format. White space in a name is replaced by single spaces, so that a row is one line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([step, split, " ".join(name.split()), float(value)])
    return text.getvalue()
