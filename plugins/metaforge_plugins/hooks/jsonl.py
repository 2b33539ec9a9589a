"""Every figure of a run as JSON, one line per step and per evaluation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from metaforge import hookimpl
from metaforge.authoring import Component, Options, RunInfo, append_lines, begin_lines


class Jsonl(Component):
    """Writes the figures of every step and evaluation as JSON into the run's folder, as it happens.

    A line is like `{"step": 3, "split": "train", "loss": 0.5}`; a figure that is not finite is null, because JSON has
    no such numbers.
    """

    class Config(Options):
        file: str = Field(default="steps.jsonl", description="Name of the file in the run's folder; ends in .jsonl.")
        every: int = Field(default=1, ge=1, description="Steps from one line of training figures to the next.")

        @field_validator("file")
        @classmethod
        def _its_own(cls, name: str) -> str:
            if not re.fullmatch(r"\w[\w.-]*\.jsonl", name, re.ASCII):
                raise ValueError(f"{name!r} is no name of a file, without a folder, that ends in .jsonl")
            if name.casefold() == "metrics.jsonl":
                raise ValueError("the run itself writes metrics.jsonl; choose another name")
            return name

    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[Any, Mapping[str, Any]]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config
        self._path: Path | None = None

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Begin the file, or continue that of a resumed run."""
        self._path = None if run.folder is None else run.folder / self.config.file
        if self._path is not None:
            begin_lines(self._path, start=run.start, step_of=lambda line: int(json.loads(line)["step"]))

    @hookimpl
    def metaforge_after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the training figures where a line is due."""
        if step % self.config.every == 0:
            self._write(step, "train", metrics)

    @hookimpl
    def metaforge_after_eval(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write the figures of an evaluation."""
        self._write(step, split, metrics)

    def _write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self._path is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            place = {"step": step, "split": split}
            # Twice: first in the line, and never hidden by a figure of that name.
            append_lines(self._path, [json.dumps(place | finite | place, allow_nan=False)])
