"""The style that all plots share: equal figures give equal bytes, and pyplot is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metaforge.results.canvas import VERMILION as VERMILION_CODE
from metaforge.results.canvas import new_figure, save_png, style_axes
from metaforge.results.plots import training_curve
from pictures import VERMILION, colours
from run_folders import write_metrics


def test_a_figure_has_its_size_in_inches_and_its_title() -> None:
    figure = new_figure(4, 3, "a title")
    assert figure.get_size_inches().tolist() == [4, 3]
    assert figure.get_suptitle() == "a title"
    assert new_figure(4, 3, "").get_suptitle() == ""


def test_style_removes_the_upper_and_right_border() -> None:
    ax = new_figure(4, 3, "").subplots()
    style_axes(ax)
    assert [name for name in ("left", "right", "top", "bottom") if ax.spines[name].get_visible()] == ["left", "bottom"]


def test_save_writes_a_png_with_styled_axes_and_creates_the_folder(tmp_path: Path) -> None:
    figure = new_figure(4, 3, "a title")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=VERMILION_CODE, lw=5)
    save_png(figure, tmp_path / "new" / "plot.png")
    assert VERMILION in colours(tmp_path / "new" / "plot.png")
    assert not ax.spines["top"].get_visible()


def test_saving_replaces_the_old_picture_only_when_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plot.png").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_png(new_figure(4, 3, ""), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == b"old"


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_metrics(tmp_path / name, 5)
        training_curve(tmp_path / name, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pyplot_and_its_global_state_are_not_loaded() -> None:
    code = "import sys, metaforge.results.run_pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
