"""TensorBoard: what it is handed, with a stand-in for its writer, and what it reads back where it is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hooking import drive, run_of
from metaforge.errors import PluginError
from metaforge_plugins.hooks.tensorboard import TensorBoard

STEPS = [(1, {"loss": 0.5}), (2, {"loss": 0.25}), (3, {"loss": float("nan")})]


class Writer:
    """Notes what torch's SummaryWriter would write; its signatures are those that are used of it."""

    made: list[Writer] = []

    def __init__(self, log_dir: str, *, purge_step: int | None = None, flush_secs: int = 120) -> None:
        self.log_dir, self.purge_step, self.closed = log_dir, purge_step, False
        self.written: list[tuple[Any, ...]] = []
        self.made.append(self)

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        self.written.append((tag, value, global_step))

    def add_text(self, tag: str, text: str, global_step: int) -> None:
        self.written.append((tag, text, global_step))

    def add_image(self, tag: str, image: Any, global_step: int, *, dataformats: str) -> None:
        self.written.append((tag, image.shape, global_step, dataformats))

    def flush(self) -> None:
        self.written.append(("flushed",))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module = ModuleType("torch.utils.tensorboard")
    setattr(module, "SummaryWriter", Writer)  # noqa: B010
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Writer.made = []
    return Writer.made


def with_picture(folder: Path) -> Path:
    (folder / "pictures").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 4), np.uint8)).save(folder / "pictures" / "training.png")
    return folder


def test_figures_configuration_and_pictures_are_written(tmp_path: Path, writers: list[Writer]) -> None:
    run = run_of(with_picture(tmp_path))
    drive(TensorBoard(TensorBoard.Config(every=2)), run, STEPS, validations={3: {"score": 0.75}})
    (writer,) = writers
    assert (writer.log_dir, writer.purge_step, writer.closed) == (str(tmp_path / "tensorboard"), None, True)
    configuration, *rest = writer.written
    assert configuration[0] == "configuration"
    assert json.dumps(run.settings, indent=2) in configuration[1]
    assert rest == [("train/loss", 0.25, 2), ("val/score", 0.75, 3), ("flushed",), ("training", (4, 6, 3), 3, "HWC")]


def test_a_resumed_run_hides_what_came_after_its_start(tmp_path: Path, writers: list[Writer]) -> None:
    drive(TensorBoard(TensorBoard.Config()), run_of(tmp_path, start=7), [])
    assert writers[0].purge_step == 8


def test_it_closes_whatever_a_picture_is(tmp_path: Path, writers: list[Writer]) -> None:
    (with_picture(tmp_path) / "pictures" / "broken.png").write_bytes(b"none")
    with pytest.raises(PluginError, match="metaforge_run_end of TensorBoard raised UnidentifiedImageError"):
        drive(TensorBoard(TensorBoard.Config()), run_of(tmp_path), [])
    assert writers[0].closed


def test_a_dry_run_leaves_nothing(tmp_path: Path, writers: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drive(TensorBoard(TensorBoard.Config()), run_of(None), STEPS, validations={3: {"score": 0.75}})
    assert writers == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [True, False])
def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(PluginError, match="tensorboard cannot be imported") as caught:
        drive(TensorBoard(TensorBoard.Config()), run_of(None if dry else tmp_path), [])
    assert "pip install 'metaforge[tensorboard]'" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_the_package_itself_reads_it_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drive(TensorBoard(TensorBoard.Config()), run_of(with_picture(tmp_path)), STEPS, validations={3: {"score": 0.75}})
    drive(TensorBoard(TensorBoard.Config()), run_of(tmp_path, start=1), [(2, {"loss": 2.5})])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 2.5)]
    assert events.Tags()["images"] == ["training"]
    (text, *_) = events.Tensors("configuration/text_summary")
    assert b"protonet" in text.tensor_proto.string_val[0]
