"""ANIL that continues from a pretrained body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class ANILPretrained(Preset):
    """ANIL in first order with a body from another run, which is trained further.

    That run is in the folder `runs/pretrained`, or the one that `--init-from` names. Its backbone, whose options must
    be equal, has no head, as that of `baseline`; for a learner whose network has one, such as `maml`, set
    `train.init_patterns=["model.0.*"]`. For weights in a file instead, set `backbone.weights`, and
    `train.init_from=none` and `train.init_patterns=[]`.
    """

    reference: ClassVar[str] = "Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157, section 4"
    settings: ClassVar[Mapping[str, Any]] = {
        "learner": {"name": "anil", "adjoint": "first-order", "norm": "transductive"},
        "train": {"init_from": "runs/pretrained", "init_patterns": ["model.* -> model.0.*"], "freeze": []},
    }
