"""ANIL on random features: what the head alone achieves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class ANILFrozen(Preset):
    """ANIL with a body that keeps its random initial values; only the initial head is trained.

    It shows how much of a score is due to trained features.
    """

    reference: ClassVar[str] = "Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157, section 5.2"
    settings: ClassVar[Mapping[str, Any]] = {
        "learner": {"name": "anil", "adjoint": "unroll", "norm": "transductive"},
        "train": {"init_from": "none", "init_patterns": [], "freeze": ["model.0.*"]},
    }
