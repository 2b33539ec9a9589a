"""A run's figures, pictures and configuration for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from metaforge import hookimpl
from metaforge.authoring import Component, Options, RunInfo
from metaforge.errors import PluginError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Component):
    """Writes events into the folder `tensorboard` of a run: scalars by split, the pictures of the report at the end.

    It needs the package tensorboard: `pip install 'metaforge[tensorboard]'`.
    """

    class Config(Options):
        every: int = Field(default=1, ge=1, description="Steps from one set of training figures to the next.")

    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[Any, Mapping[str, Any]]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config
        self._writer: SummaryWriter | None = None
        self._step = 0

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Open the writer; of a resumed run, TensorBoard hides what was written of later steps."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise PluginError(
                f"The package tensorboard cannot be imported: {error}.",
                where="hooks.tensorboard",
                remedy="pip install 'metaforge[tensorboard]', or leave the hook out",
            ) from error
        self._writer, self._step = None, run.start
        if run.folder is not None:
            purge = run.start + 1 if run.start else None
            self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge, flush_secs=10)
            settings = json.dumps(run.settings, indent=2)
            self._writer.add_text("configuration", f"```json\n{settings}\n```", run.start)

    @hookimpl
    def metaforge_after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the training figures where they are due."""
        self._step = step
        if step % self.config.every == 0:
            self._write(step, "train", metrics)

    @hookimpl
    def metaforge_after_eval(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write the figures of an evaluation."""
        self._write(step, split, metrics)
        if self._writer is not None:
            self._writer.flush()

    @hookimpl
    def metaforge_run_end(self, run: RunInfo) -> None:
        """Add the pictures of the run's report, and close the writer."""
        if self._writer is None or run.folder is None:
            return
        writer, self._writer = self._writer, None
        try:
            for path in sorted((run.folder / "pictures").glob("*.png")):
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                writer.add_image(path.stem, pixels, self._step, dataformats="HWC")
        finally:
            writer.close()

    def _write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)
