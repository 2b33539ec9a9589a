"""Sinusoids as MAML is reported on them.

The paper plots the error after each number of steps; `evaluate.steps` chooses the ones to report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class SinusoidMAML(Preset):
    """Sinusoids of ten points, with errors on a grid of 100 points after 0, 1, 5 and 10 steps of 600 test tasks.

    For five points, set `task.shots=5`.
    """

    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.1"
    settings: ClassVar[Mapping[str, Any]] = {
        "task": {"ways": 1, "shots": 10, "queries": 100},
        "dataset": {"name": "sinusoid", "query_grid": True},
        "train": {"queries": 10},
        "evaluate": {"tasks": 600, "steps": [0, 1, 5, 10]},
    }
