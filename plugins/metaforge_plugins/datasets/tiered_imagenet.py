"""Tiered-ImageNet: 608 classes of ImageNet, 351 to train, 97 to validate, 160 to test on; splits share no category.

Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle and Zemel, "Meta-learning for semi-supervised few-shot
classification", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from metaforge import data


class TieredImageNetOptions(data.ClassFoldersOptions):
    """Options of tiered-ImageNet."""

    mode: Literal["memory", "on-demand"] = Field(
        default="on-demand",
        description="on-demand: decode each image when it is sampled; memory: load all images of a split and cache "
        "them on disk (10 GB for 84 pixels)",
    )


class TieredImageNet(data.ClassFolders):
    """Tiered-ImageNet: 608 classes of ImageNet, 351 to train, 97 to validate, 160 to test on; splits share no category.

    The 779,165 images belong to 34 categories: 20 to train, 6 to validate and 8 to test on. MetaForge does not download
    them: put them into the folder `tiered-imagenet`, as class folders in `train`, `val` and `test`. The pickles that
    the authors distribute are not read.
    """

    Config = TieredImageNetOptions
    reference: ClassVar[str] = "https://arxiv.org/abs/1803.00676"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classification": {"backbone": {"name": "conv4", "variant": "pool"}}
    }
    folder = "tiered-imagenet"
    contents = data.Contents({"train": 351, "val": 97, "test": 160}, images=(732, 1300), total=779_165)
    source = (
        "take the images from ImageNet, https://www.image-net.org, whose terms you must accept, and the classes of the "
        "splits, or pickles to convert, from the authors, https://github.com/renmengye/few-shot-ssl-public"
    )
