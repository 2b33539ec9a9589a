"""Writes all metrics of a run as JSON lines, one line per step or evaluation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator

from metaforge import hookimpl
from metaforge.authoring import Hook, Options, RunInfo, append_lines, begin_lines


class Jsonl(Hook):
    """Appends the metrics of each step and evaluation to a JSON Lines file in the run folder.

    A line looks like `{"step": 3, "split": "train", "loss": 0.5}`. Non-finite values are written as null, because JSON
    cannot represent them.
    """

    class Config(Options):
        file: str = Field(default="steps.jsonl", description="Name of the file in the run folder; ends with .jsonl.")
        every: int = Field(default=1, ge=1, description="Number of steps between lines of training metrics.")

        @field_validator("file")
        @classmethod
        def _valid_name(cls, name: str) -> str:
            if not re.fullmatch(r"\w[\w.-]*\.jsonl", name, re.ASCII):
                raise ValueError(f"{name!r} is not a file name that ends with .jsonl, without a folder")
            if name.casefold() == "metrics.jsonl":
                raise ValueError("the run itself writes metrics.jsonl; choose another name")
            return name

    def __init__(self, config: Config) -> None:
        self.config = config
        self._path: Path | None = None

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Create the file, or in a resumed run remove the lines of later steps."""
        self._path = None if run.folder is None else run.folder / self.config.file
        if self._path is not None:
            begin_lines(self._path, start=run.start, step_of=lambda line: int(json.loads(line)["step"]))

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
        if self._path is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            position = {"step": step, "split": split}
            # Merged twice: once to put the two keys first, once to protect them from metrics of the same name.
            append_lines(self._path, [json.dumps(position | finite | position, allow_nan=False)])
