"""MAML with both a learned curvature and learned rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class MAMLEnhanced(Preset):
    """MAML with the adapters `meta-curvature` and `lslr`: a learned curvature, and rates per tensor and step."""

    reference: ClassVar[str] = (
        "Park, Oliva 2019, arXiv 1902.03356; Antoniou, Edwards, Storkey 2019, arXiv 1810.09502, section 4"
    )
    settings: ClassVar[Mapping[str, Any]] = {"learner": {"name": "maml"}, "adapters": ["meta-curvature", "lslr"]}
