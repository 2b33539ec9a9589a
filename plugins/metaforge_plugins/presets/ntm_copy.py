"""The copy task as neural Turing machines are reported on it.

The paper trains on sequences of 1 to 20 elements, and shows recalls of 10, 20, 30, 50 and 120 elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class NTMCopy(Preset):
    """The copy task, with sequences of 1 to 20 elements in training and of 20 in testing.

    `metaforge evaluate RUN --shots 120 --queries 120` tests on longer ones; the metric `wrong_bits` is per sequence.
    """

    reference: ClassVar[str] = "Graves et al. 2014, arXiv 1410.5401, section 4.1"
    settings: ClassVar[Mapping[str, Any]] = {
        "task": {"ways": 1, "shots": 20, "queries": 20},
        "dataset": {"name": "copy", "bits": 8},
        "train": {"shots": [*range(1, 21)], "queries": [*range(1, 21)], "together": True},
    }
