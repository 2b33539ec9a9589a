"""What all pictures share: colours, a figure of their own, and how it is written.

The colours are those of Okabe and Ito, which people of any colour vision tell apart; no meaning hangs on colour only.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metaforge.results.records import write_in_folder

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, INK, GREY = "#CC79A7", "#56B4E9", "#222222", "#8A8A8A"


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of a size in inches, on the Agg canvas and known to nobody else."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return figure


def plain(ax: Axes) -> None:
    """Take from a plot's frame what carries no information."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, colors=INK)


def save(figure: Figure, out: Path) -> None:
    """Write a figure as PNG, atomically."""
    for ax in figure.axes:
        if ax.axison:
            plain(ax)
    drawn = io.BytesIO()
    # Without the software's version the same figures make the same bytes.
    figure.savefig(drawn, format="png", metadata={"Software": None})
    write_in_folder(out, drawn.getvalue())
