"""The features of all images of a data set, computed once with the network of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metaforge.authoring.functional import prefixed, select
from metaforge.authoring.model import Model
from metaforge.authoring.model_learner import ModelLearner
from metaforge.authoring.network import Headed
from metaforge.authoring.protocols import Params
from metaforge.data.class_pool import ClassPool, Features, Pixels
from metaforge.data.image_dataset import ImageDataset
from metaforge.engine.batch import prepare_tensor
from metaforge.errors import ConfigError
from metaforge.runs.run import Run
from metaforge.system.files import write_atomically

# Images that the network sees at once.
_BATCH = 256


def write_features(
    run: Run, path: Path, splits: Sequence[str], *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Compute the features of all images of some splits with the network of a run, and write them to a file.

    A linear head of the network is left out. The file is an `.npz` with the arrays `<split>.features`
    `[images, features]` float32, class after class; `<split>.sizes` `[classes]`, the number of images of each class;
    `<split>.names` `[classes]`; and `about`, a text in JSON.

    Args:
        run: The run.
        path: The file that is written.
        splits: The splits of the run's data set.
        progress: Called with (images so far, images in all).

    Returns:
        What is written as `about`: the run, its step, its configuration and the size of the features.

    Raises:
        ConfigError: The learner has no network of its own, its features depend on the other images of a task, or the
            data set is not one of images.
        DataError: A split is missing.
        StorageError: The file cannot be written.
    """
    dataset = run.dataset
    if not isinstance(dataset, ImageDataset):
        raise ConfigError("The data set of the run is not one of images.", where="dataset.name")
    model, values = body_of(run)
    pools = {split: dataset.pool(split) for split in splits}
    total, done = sum(int(pool.class_sizes.sum()) for pool in pools.values()), 0
    arrays: dict[str, Any] = {}
    for split, pool in pools.items():
        rows = []
        for images in _batches(pool):
            rows.append(_features(model, values, images, run))
            done += len(images)
            if progress is not None:
                progress(done, total)
        arrays[f"{split}.features"] = np.concatenate(rows)
        arrays[f"{split}.sizes"], arrays[f"{split}.names"] = pool.class_sizes, np.array(list(pool.names))
    about = {
        "run": None if run.folder is None else str(run.folder),
        "step": run.summary.get("steps"),
        "features": int(arrays[f"{splits[0]}.features"].shape[1]),
        "config": run.resolved.to_dict(),
    }
    file = io.BytesIO()
    np.savez(file, **arrays, about=np.array(json.dumps(about)))
    write_atomically(path, file.getvalue())
    return about


def body_of(run: Run) -> tuple[Model, Params]:
    """Return the network of a run without its linear head, and its values."""
    spec = run.evaluated_spec()
    learner = run.learner(spec)
    if not isinstance(learner, ModelLearner):
        raise ConfigError(
            "The learner of the run has no network of its own.",
            where="learner.name",
            remedy="take a run of another learner, such as one that pretrains a network",
        )
    if learner.model.norm not in ("running", "none"):
        raise ConfigError(
            f"Batch norm has the policy {learner.model.norm!r} in this run, so that the features of an image depend on"
            " the other images of a task.",
            where="learner.norm",
            remedy="take a run with learner.norm=running, or a network without batch norm",
        )
    headed = isinstance(learner.model.module, Headed)
    values = prefixed("model", select(run.values, "model.0" if headed else "model"))
    return Model(run.parts.backbone_maker(spec), norm="running", x_shape=spec.x_shape), values


def _batches(pool: ClassPool) -> Iterator[Pixels | Features]:
    """Yield the images `[n, C, H, W]` of all classes of a pool, class after class."""
    classes = np.repeat(np.arange(len(pool.names)), pool.class_sizes)
    images = np.concatenate([np.arange(size) for size in pool.class_sizes])
    for first in range(0, len(classes), _BATCH):
        yield pool.take(classes[first : first + _BATCH], images[first : first + _BATCH])


def _features(model: Model, values: Params, images: Pixels | Features, run: Run) -> NDArray[np.float32]:
    """Return the flattened features `[n, features]` of images `[n, C, H, W]`."""
    x = prepare_tensor(torch.from_numpy(images), run.device, run.dtype)
    with torch.no_grad():
        found: NDArray[np.float32] = model(values, x).flatten(1).float().cpu().numpy()
    return found
