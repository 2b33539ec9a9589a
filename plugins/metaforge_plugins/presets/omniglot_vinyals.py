"""Omniglot as prototypical networks are reported on it.

The lists of the split's classes are not part of MetaForge; the data set looks for them in its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge.authoring import Preset


class OmniglotVinyals(Preset):
    """Omniglot with the split of Vinyals et al., rotated classes in training and evaluation, and 1,000 test tasks.

    It needs the lists of its classes, see the option `split_file` of `omniglot`.
    """

    reference: ClassVar[str] = "Snell, Swersky, Zemel 2017, arXiv 1703.05175, section 3.1"
    settings: ClassVar[Mapping[str, Any]] = {
        "task": {"ways": 5, "shots": 1, "queries": 15},
        "dataset": {
            "name": "omniglot",
            "size": 28,
            "split": "file",
            "split_file": "splits/vinyals",
            "rotations": "all",
        },
        "evaluate": {"tasks": 1000},
    }
