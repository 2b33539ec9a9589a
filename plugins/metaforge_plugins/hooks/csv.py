"""Every figure of a run as a table, one row per figure: `step,split,metric,value` in `metrics.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from metaforge import hookimpl
from metaforge.authoring import Component, Options, RunInfo, append_lines, begin_lines

HEADING = "step,split,metric,value"


class Csv(Component):
    """Writes a row for every figure into `metrics.csv` in the run's folder, as it happens.

    Long, not wide: its columns stay what they are when a figure appears later, such as the first validation's. A
    figure that is not finite is `nan`, `inf` or `-inf`.
    """

    class Config(Options):
        every: int = Field(default=1, ge=1, description="Steps from one set of training figures to the next.")

    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[Any, Mapping[str, Any]]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config
        self._path: Path | None = None

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Begin the table, or continue that of a resumed run."""
        self._path = None if run.folder is None else run.folder / "metrics.csv"
        if self._path is not None:
            begin_lines(
                self._path, start=run.start, step_of=lambda line: int(line.partition(",")[0]), heading=[HEADING]
            )

    @hookimpl
    def metaforge_after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the training figures where they are due."""
        if step % self.config.every == 0:
            self._write(step, "train", metrics)

    @hookimpl
    def metaforge_after_eval(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write the figures of an evaluation."""
        self._write(step, split, metrics)

    def _write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self._path is not None and metrics:
            append_lines(self._path, [row(step, split, name, value) for name, value in metrics.items()])


def row(step: int, split: str, name: str, value: float) -> str:
    """Return one row, quoted where it must be; white space in a name is a space, so that a row is a line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([step, split, " ".join(name.split()), float(value)])
    return text.getvalue()
