"""FC100: the 100 classes of CIFAR-100 with 600 images each; its splits share no superclass: 60, 20 and 20 classes.

Oreshkin, Rodríguez López and Lacoste, "TADAM: Task dependent adaptive metric for improved few-shot learning", NeurIPS
2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from metaforge import data


class FC100Options(data.ClassFoldersOptions):
    """Options of FC100."""

    size: int = Field(default=32, ge=8, le=512, description="height and width of the images in pixels")


class FC100(data.ClassFolders):
    """FC100: the 100 classes of CIFAR-100 with 600 images each; its splits share no superclass: 60, 20 and 20 classes.

    Of the 20 superclasses of CIFAR-100, 12 are to train, 4 to validate and 4 to test on. MetaForge does not download
    the images of 32 x 32 pixels: put them into the folder `fc100`, as class folders in `train`, `val` and `test`. The
    pickles in which the set is distributed are not read.
    """

    Config = FC100Options
    reference: ClassVar[str] = "https://arxiv.org/abs/1805.10123"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classification": {"backbone": {"name": "conv4", "variant": "pool"}}
    }
    folder = "fc100"
    contents = data.Contents({"train": 60, "val": 20, "test": 20}, images=(600, 600), total=60_000)
    source = (
        "take the classes of the splits, or pickles to convert, from the authors, https://github.com/ElementAI/TADAM; "
        "the images are those of CIFAR-100, https://www.cs.toronto.edu/~kriz/cifar.html"
    )
