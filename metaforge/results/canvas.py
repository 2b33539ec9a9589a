"""The style that all plots and pictures share: colours, an empty figure, and how it is saved.

The colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart. No plot depends on
colour alone.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metaforge.errors import printable
from metaforge.results.records import write_in_folder

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, INK, GREY = "#CC79A7", "#56B4E9", "#222222", "#8A8A8A"

# The most characters of a title.
_MAX_TITLE = 120


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure, its size in inches, on the Agg canvas; pyplot and its global state are not used."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        # A title has names from a run folder: it is neither parsed as a formula nor longer than the figure is wide.
        text = "\n".join(
            printable(line if len(line) <= _MAX_TITLE else f"{line[:_MAX_TITLE]}…") for line in title.split("\n")
        )
        figure.suptitle(text, fontsize=11, color=INK, parse_math=False)
    return figure


def style_axes(ax: Axes) -> None:
    """Remove the upper and right border, and draw a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, colors=INK)


def save_png(figure: Figure, out: Path) -> None:
    """Write a figure as a PNG file, atomically."""
    for ax in figure.axes:
        if ax.axison:
            style_axes(ax)
    # Labels have texts from a run folder, as titles do: they are not parsed as formulas.
    legends = [*figure.legends, *(legend for ax in figure.axes if (legend := ax.get_legend()) is not None)]
    labels = [label for ax in figure.axes for label in (ax.xaxis.label, ax.yaxis.label)]
    for text in (*labels, *(text for legend in legends for text in legend.get_texts())):
        text.set_parse_math(False)
    buffer = io.BytesIO()
    # Without the version of matplotlib, equal figures give equal bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_in_folder(out, buffer.getvalue())
