"""Stored features: features of images that `metaforge features` computed once, with the network of another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from metaforge import data
from metaforge.authoring import Options
from metaforge.errors import DataError

SPLITS = ("train", "val", "test")


class StoredFeaturesOptions(Options):
    """Options of the data set of stored features."""

    file: str = Field(
        "features.npz",
        min_length=1,
        description="the file that `metaforge features` wrote; relative to the data folder",
    )
    standardise: bool = Field(
        False,
        description="subtract the mean of each feature over the images of the training split, and divide by its"
        " standard deviation there",
    )


class StoredFeatures(data.ImageDataset):
    """The features of another run's network in place of images: each image is a vector.

    `metaforge features RUN --out FILE` computes them. A learner on them trains in a small part of the time, because
    nothing but its own part is computed; with the backbone `identity` it gets the features as they are.
    """

    Config = StoredFeaturesOptions
    reference: ClassVar[str] = "Rusu et al. 2019, arXiv 1807.05960, section 4.2"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"classification": {"backbone": {"name": "identity"}}}

    def __init__(self, config: StoredFeaturesOptions, *, root: Path) -> None:
        self.config, self.path = config, Path(config.file)
        self._pools: dict[str, data.ClassPool] = {}

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the numbers of classes, images and features of a split, and the run with which they were computed."""
        pool = self.pool(split)
        return {
            "classes": len(pool.names),
            "images": int(pool.class_sizes.sum()),
            "features": pool.image_shape[0],
            "run": str(self.about.get("run")),
            "step": str(self.about.get("step")),
        }

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of the run whose network computed the features."""
        found: dict[str, Any] = json.loads(str(self._arrays["about"]))
        return found

    def pool(self, split: str) -> data.ClassPool:
        """Return the classes of a split; their images have the shape `[features, 1, 1]`."""
        data.check_split(split, SPLITS, "stored-features")
        if split not in self._pools:
            if f"{split}.features" not in self._arrays:
                raise DataError(
                    f"it has no features of the {split} split",
                    where=str(self.path),
                    remedy=f"compute them with `metaforge features RUN --splits train,{split}`",
                )
            rows, sizes, names = (self._arrays[f"{split}.{part}"] for part in ("features", "sizes", "names"))
            mean, deviation = self._scale
            rows = (rows - mean) / deviation
            images = np.zeros((len(sizes), sizes.max(), rows.shape[1], 1, 1), dtype=np.float32)
            images[np.arange(sizes.max()) < sizes[:, None]] = rows[..., None, None]
            self._pools[split] = data.ClassPool(images, names.tolist(), sizes=sizes)
        return self._pools[split]

    @cached_property
    def _scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what is subtracted from the features and what they are divided by, each `[features]`."""
        if not self.config.standardise:
            return np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32)
        if "train.features" not in self._arrays:
            raise DataError(
                "it has no features of the train split, by which they are to be standardised",
                where=str(self.path),
                remedy="compute them with `metaforge features RUN`, or set dataset.standardise=false",
            )
        rows = self._arrays["train.features"].astype(np.float64)
        mean, deviation = rows.mean(0), rows.std(0)
        # A feature that is the same for all images stays finite: zero.
        return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the file; raise `DataError` if they are not what `metaforge features` writes."""
        remedy = "write it with `metaforge features RUN --out FILE`, and name it by --set dataset.file=FILE"
        if not self.path.is_file():
            raise DataError("there is no such file of features", where=str(self.path), remedy=remedy)
        arrays = data.read_arrays(self.path)
        try:
            json.loads(str(arrays["about"]))
            for split in SPLITS:
                if f"{split}.features" in arrays:
                    _check(*(arrays[f"{split}.{part}"] for part in ("features", "sizes", "names")))
        except (KeyError, ValueError) as error:
            raise DataError(f"it is not a file of features ({error})", where=str(self.path), remedy=remedy) from error
        return arrays


def _check(features: NDArray[Any], sizes: NDArray[Any], names: NDArray[Any]) -> None:
    """Raise `ValueError` unless the arrays of a split fit together."""
    if features.dtype != np.float32 or features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError("features must be finite numbers, float32 [images, features]")
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or names.shape != sizes.shape or names.dtype.kind != "U":
        raise ValueError("sizes and names must be vectors of integers and of texts, of the same length")
    if not len(sizes) or (sizes < 1).any() or sizes.sum() != len(features):
        raise ValueError("the sizes of the classes do not add up to the number of images")
