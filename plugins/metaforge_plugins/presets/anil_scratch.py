"""ANIL whose body and head are trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class ANILScratch(Preset):
    """ANIL of second order, body and head trained from random initial values.

    `learner.adjoint=first-order` gives the first-order variant: the gradient of the body is then that of the query loss
    with the adapted head as a constant.
    """

    reference: ClassVar[str] = "Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157, section 4"
    settings: ClassVar[Mapping[str, Any]] = {
        "learner": {"name": "anil", "adjoint": "unroll", "norm": "transductive"},
        "train": {"init_from": "none", "init_patterns": [], "freeze": []},
    }
