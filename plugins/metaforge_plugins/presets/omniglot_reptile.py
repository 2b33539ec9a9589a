"""Omniglot as Reptile is reported on it.

The authors train on 1200 characters; here it is 1100, 100 for validation and 423 for testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class OmniglotReptile(Preset):
    """Omniglot with a random split, rotated classes in training, and 10,000 test tasks with one query per class.

    The images are not inverted. `learner.transduction=false` gives the figures without transduction.
    """

    reference: ClassVar[str] = "Nichol, Achiam, Schulman 2018, arXiv 1803.02999, section 6"
    settings: ClassVar[Mapping[str, Any]] = {
        "task": {"ways": 5, "shots": 1, "queries": 1},
        "dataset": {"name": "omniglot", "size": 28, "split": "random", "rotations": "train", "invert": False},
        "evaluate": {"tasks": 10_000},
    }
