"""`metaforge.train` and `metaforge.load`: how their arguments become a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import metaforge
from metaforge.errors import ConfigError
from quick_runs import trained


def test_keywords_take_precedence_over_settings(tmp_path: Path) -> None:
    settings = {
        "learner": {"steps": 2},
        "dataset": {"phase": "plus"},
        "train": {"lr": 0.5, "tasks": 2, "steps": 9},
        "seed": 4,
    }
    run = metaforge.train("maml", {"name": "sinusoid"}, steps=1, lr=0.01, settings=settings, out=tmp_path / "run")
    config = run.resolved.run
    assert (config.train.steps, config.train.lr, config.train.tasks, config.seed) == (1, 0.01, 2, 4)
    assert run.resolved.learner is not None
    assert run.resolved.dataset is not None
    assert run.resolved.learner.config.model_dump()["steps"] == 2
    assert run.resolved.dataset.config.model_dump()["phase"] == "plus"
    assert run.resolved.origins["learner.steps"] == "settings"


def test_options_without_a_name_belong_to_the_plugin_that_a_keyword_names(tmp_path: Path) -> None:
    settings = {"dataset": {"jitter": 0.25, "train": 60}, "train": {"tasks": 1}}
    other = {"name": "glyphs", "val": 10}
    run = metaforge.train("protonet", other, steps=1, settings=settings, out=tmp_path / "run")
    assert run.resolved.dataset is not None
    options = run.resolved.dataset.config.model_dump()
    assert (options["jitter"], options["train"], options["val"]) == (0.25, 60, 10)


def test_any_module_is_a_backbone_and_is_not_modified(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run = trained(tmp_path / "run", backbone=module)
    assert isinstance(module[2], nn.BatchNorm1d)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.isfinite(torch.stack([v.norm() for v in run.values.values()])).all()
    again = metaforge.load(run.folder, backbone=module)
    assert all(torch.equal(again.values[name], run.values[name]) for name in run.values)


def test_a_module_path_is_accepted_in_python_only(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", backbone="torch.nn:Flatten")
    assert any(name.endswith("weight") for name in run.values)
    config = tmp_path / "run.toml"
    config.write_text('[learner]\nname = "maml"\n[backbone]\nname = "torch.nn:Flatten"\n')
    with pytest.raises(metaforge.errors.MetaForgeError):
        metaforge.train("maml", config=config, out=tmp_path / "refused")


def test_a_plugin_with_an_option_after_a_colon_is_no_module_path(tmp_path: Path) -> None:
    options = {"width": 1, "stem": "small"}
    settings = {"backbone": options, "dataset": {"size": 16}, "evaluate": {"tasks": 2}, "train": {"tasks": 1}}
    run = metaforge.train("protonet", "glyphs", backbone="resnet:10", steps=1, settings=settings, out=tmp_path / "run")
    assert run.resolved.backbone is not None
    assert run.resolved.backbone.config.model_dump() == {"weights": None, "depth": 10, **options}
    again = metaforge.load(tmp_path / "run")
    assert again.values.keys() == run.values.keys()


@pytest.mark.parametrize(
    ("path", "said", "remedy"),
    [
        ("nope:Class", "cannot be imported: ModuleNotFoundError", "write module:Class"),
        (":Class", "cannot be imported: ValueError", "write module:Class"),
        ("torch.nn:Nope", "names nothing that builds a module", "write module:Class"),
        ("torch.nn:Linear", "cannot be built without arguments: missing a required argument", "that needs none"),
        ("torch.nn.functional:relu", "cannot be built without arguments", "that needs none"),
    ],
)
def test_a_path_that_builds_no_backbone_is_refused(tmp_path: Path, path: str, said: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"'{path}' {said}") as caught:
        trained(tmp_path / "run", backbone=path)
    assert remedy in caught.value.remedy
    assert not (tmp_path / "run").exists()
