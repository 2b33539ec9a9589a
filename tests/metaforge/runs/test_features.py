"""Features of all images: those of the run's network, without its head, in the order of the classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metaforge
from metaforge.authoring import Pass
from metaforge.errors import ConfigError, DataError
from metaforge.runs.features import write_features

SETTINGS = {"engine": {"threads": 1}, "evaluate": {"tasks": 4}, "train": {"log_every": 1}}


def trained(out: Path, learner: str, **settings: Any) -> Any:
    return metaforge.train(
        learner, dataset="glyphs", steps=2, settings={**SETTINGS, "backbone": {"filters": 4}, **settings}, out=out
    )


@pytest.mark.parametrize("learner", ["protonet", "baseline", "siamese"])
def test_they_are_those_of_the_network_without_its_head(tmp_path: Path, learner: str) -> None:
    run, seen = trained(tmp_path / "run", learner), list[tuple[int, int]]()
    about = write_features(run, tmp_path / "f.npz", ["test"], progress=lambda done, total: seen.append((done, total)))
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    pool = run.dataset.pool("test")
    assert arrays["test.names"].tolist() == list(pool.names)
    assert arrays["test.sizes"].tolist() == pool.class_sizes.tolist()
    assert seen[-1] == (pool.class_sizes.sum(),) * 2
    assert json.loads(str(arrays["about"])) == json.loads(json.dumps(about))
    assert about["step"] == 2
    # The third image of the fifth class, by the learner's own network.
    images = pool.take(np.array([4]), np.array([2]))
    x = torch.from_numpy(images).float() / 255
    model, at = run.learner().model, 4 * pool.per_class + 2
    if learner != "siamese":
        expected = model(run.values, x, Pass()).flatten(1)
    else:
        kept: dict[str, torch.Tensor] = {}
        model.module[0].register_forward_hook(lambda module, args, out: kept.update(out=out))
        model(run.values, x, Pass())
        expected = kept["out"].flatten(1)
    torch.testing.assert_close(
        torch.from_numpy(arrays["test.features"][at]), expected[0].detach(), rtol=1e-5, atol=1e-6
    )


def test_what_has_no_features_of_single_images_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "maml", "maml")
    with pytest.raises(ConfigError, match="policy 'transductive'"):
        write_features(run, tmp_path / "f.npz", ["test"])
    waves = metaforge.train("cnp", dataset="sinusoid", steps=1, settings=SETTINGS, out=tmp_path / "cnp")
    with pytest.raises(ConfigError, match="not one of images"):
        write_features(waves, tmp_path / "f.npz", ["test"])
    with pytest.raises((ConfigError, DataError), match="no split 'tset'"):
        write_features(trained(tmp_path / "proto", "protonet"), tmp_path / "f.npz", ["tset"])
    assert not (tmp_path / "f.npz").exists()
