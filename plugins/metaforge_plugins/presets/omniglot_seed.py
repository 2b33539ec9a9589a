"""Images of full size, few training tasks: a protocol in which methods are compared on a small budget.

The 964 background characters are for training and the 659 evaluation characters for testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class OmniglotSeed(Preset):
    """Omniglot of 105 × 105 pixels, split by alphabet and not rotated, with 2,000 training tasks.

    The images are not inverted, the network has four blocks with pooling and 2,304 features, and the evaluation is on
    200 tasks of 15 queries per class. The rates of the learners are not part of it.
    """

    reference: ClassVar[str] = "Lake, Salakhutdinov, Tenenbaum 2015, https://doi.org/10.1126/science.aab3050"
    settings: ClassVar[Mapping[str, Any]] = {
        "task": {"ways": 5, "shots": 1, "queries": 15},
        "dataset": {"name": "omniglot", "size": 105, "split": "lake", "rotations": "none", "invert": False},
        "backbone": {"name": "conv4", "variant": "pool"},
        "train": {"steps": 500, "tasks": 4},
        "evaluate": {"tasks": 200},
    }
