"""Initial values from another run, and values that never change: what is taken, what is reported, what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import metaforge
from metaforge.authoring import Params
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.engine.processes import World
from metaforge.errors import CheckpointError, ConfigError, DivergedError
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge.runs.initial_values import frozen_values, initial_state, sources, take_over
from metaforge.runs.resume import configuration
from metaforge.runs.run import Run
from metaforge.runs.training import run_training
from metaforge.runs.worker import Worker
from quick_runs import trained
from tests.reliability.interruptions import StopAfter

OWN: Params = {
    "model.0.0.weight": torch.zeros(2),
    "model.2.weight": torch.zeros(3),
    "state.model.0.1.mean": torch.zeros(2),
}
SOURCE: Params = {
    "model.0.weight": torch.ones(2),
    "model.2.weight": torch.ones(4),
    "state.model.1.mean": torch.ones(2),
}


def test_what_fits_is_taken_and_the_rest_is_reported_with_its_reason() -> None:
    source = {**SOURCE, "model.0.0.weight": torch.ones(2, dtype=torch.float64)}
    values, report = take_over(OWN, source, [])
    assert list(values) == list(OWN)
    assert torch.equal(values["model.0.0.weight"], torch.ones(2))
    assert report == {
        "taken": ["model.0.0.weight"],
        "cast": {"torch.float64 to torch.float32": ["model.0.0.weight"]},
        "not_taken": {
            "its shape is [4] there and [3] here": ["model.2.weight"],
            "that run has no such value": ["state.model.0.1.mean"],
        },
        "unused": ["model.0.weight", "model.2.weight", "state.model.1.mean"],
    }


def test_the_training_progress_is_that_of_the_new_run() -> None:
    own = {"w": torch.zeros(1), "state.adapters.x.training.step": torch.zeros(())}
    values, report = take_over(own, {"w": torch.ones(1), "state.adapters.x.training.step": torch.ones(())}, [])
    assert report == {"taken": ["w"], "cast": {}, "not_taken": {}, "unused": []}
    assert float(values["state.adapters.x.training.step"]) == 0


def test_patterns_choose_and_rename() -> None:
    values, report = take_over(OWN, SOURCE, ["model.* -> model.0.*"])
    assert report["taken"] == ["model.0.0.weight", "state.model.0.1.mean"]
    assert report["not_taken"] == {"train.init_patterns does not match it": ["model.2.weight"]}
    assert torch.equal(values["state.model.0.1.mean"], torch.ones(2))
    _, report = take_over(OWN, SOURCE, ["model.0.weight->model.0.0.weight"])
    assert report["taken"] == ["model.0.0.weight"]
    _, report = take_over(SOURCE, SOURCE, ["model.[01].*"])
    assert report["taken"] == ["model.0.weight", "state.model.1.mean"]


@pytest.mark.parametrize("last", [0, 1])
def test_of_several_patterns_for_a_value_the_last_applies(last: int) -> None:
    source: Params = {"a.w": torch.zeros(1), "b.w": torch.ones(1)}
    patterns = ["a.* -> a.*", "b.* -> a.*"]
    values, report = take_over({"a.w": torch.full((1,), 7.0)}, source, patterns[:: 1 if last else -1])
    assert float(values["a.w"]) == last
    assert report["unused"] == [["b.w", "a.w"][last]]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["model.? -> x", "model.*"], r"'model.\? -> x' should have .* and no other wildcard"),
        (["model.[01].weight -> model.0.0.weight", "model.*"], "no other wildcard"),
        (["model.* -> model.[0].*", "model.*"], "no other wildcard"),
        (["model.0.weight ->", "model.*"], "should have one"),
        (["-> model.0.0.weight", "model.*"], "should have one"),
        (["modell.* -> model.*", "model.*"], r"The pattern 'modell.\*' matches no value"),
        (["modell.*"], r"The pattern 'modell.\*' matches no value"),
        (["model.* -> body"], "should have one '\\*' on both sides of the arrow, or none"),
        (["*.* -> *.*"], "should have one '\\*' on both sides"),
        (
            ["model.2.*"],
            r"fits: that run has no such value: model.0.0.weight, state.model.0.1.mean; its shape is \[4\]",
        ),
        ([], r"its shape is \[4\] there and \[3\] here: model.2.weight"),
    ],
)
def test_patterns_that_take_nothing_are_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take_over(OWN, SOURCE, patterns)


def worker(learner: Any = "maml", dataset: str = "sinusoid", **train: Any) -> Worker:
    values = {"learner": learner, "dataset": dataset, "engine": {"threads": 1}, "train": train}
    return Worker(resolve([Layer("test", values)], scan()), World())


def test_a_run_without_sources_begins_with_an_empty_state() -> None:
    assert sources(worker().resolved) == []
    state, facts = initial_state(worker())
    assert (state.values, facts) == ({}, {})


def test_frozen_values_are_named_and_a_pattern_without_any_is_refused() -> None:
    assert frozen_values(worker()) == []
    assert frozen_values(worker(freeze=["model.0.*"]))[0] == "model.0.1.weight"
    with pytest.raises(ConfigError, match=r"The pattern 'mdel.2.bias' matches no value") as caught:
        frozen_values(worker(freeze=["model.0.*", "mdel.2.bias"]))
    assert caught.value.where == "train.freeze"
    assert "names are model.2.bias, " in caught.value.remedy


def test_a_run_whose_parameters_are_all_frozen_is_refused_unless_it_takes_no_step() -> None:
    protonet: dict[str, Any] = {"learner": "protonet", "dataset": "glyphs"}
    with pytest.raises(ConfigError, match="Every parameter of the learner is frozen") as caught:
        frozen_values(worker(**protonet, freeze=["*"]))
    assert caught.value.where == "train.freeze"
    assert frozen_values(worker(**protonet, freeze=["*"], steps=0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "run"
    trained(folder)
    return folder


def resumed(folder: Path, **train: Any) -> Run:
    config = configuration(folder, [Layer("keyword", {"train": train})], scan())
    return run_training(config, folder=folder, resuming=True)


def test_the_record_names_the_run_its_step_and_its_digest(source: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", init_from=source, steps=0)
    facts = json.loads((tmp_path / "run" / "env.json").read_text())["init_from"]
    manifest = source / "ckpt" / "step-0000006" / "MANIFEST.json"
    assert facts["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert (facts["run"], facts["step"]) == (str(source), 6)
    taken = checkpoint.load_latest(source / "ckpt")[0].values
    assert set(facts["taken"]) == set(run.values)
    assert all(torch.equal(run.values[name], taken[name]) for name in taken)
    assert f'init_from = "{source}"' in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("stop", [0, 3])
def test_the_run_needs_its_source_no_more(source: Path, tmp_path: Path, stop: int) -> None:
    other = shutil.copytree(source, tmp_path / "source")
    whole = trained(tmp_path / "whole", init_from=other)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", init_from=other, hooks=[StopAfter(stop)])
    shutil.rmtree(other)
    run = resumed(tmp_path / "run")
    assert run.summary["resumed"]["exact"]
    assert all(torch.equal(run.values[name], whole.values[name]) for name in whole.values)
    one, two = (metaforge.load(tmp_path / name).evaluate()["results"] for name in ("whole", "run"))
    assert one == two


def test_a_source_that_is_no_run_or_is_damaged_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        trained(tmp_path / "run", init_from=tmp_path / "nothing")
    damaged = shutil.copytree(source, tmp_path / "source")
    (damaged / "ckpt" / "step-0000006" / "model.safetensors").write_bytes(b"evil")
    for path in (damaged / "ckpt").glob("step-000000[0-5]"):
        shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        trained(tmp_path / "run", init_from=damaged)
    (damaged / "link").symlink_to("/etc")
    with pytest.raises(ConfigError, match="symbolic link"):
        trained(tmp_path / "run", init_from=damaged)
    assert not (tmp_path / "run").exists()


def test_values_that_are_not_finite_are_refused(source: Path, tmp_path: Path) -> None:
    other = shutil.copytree(source, tmp_path / "source")
    saved = checkpoint.load_latest(other / "ckpt")[0]
    broken = {name: value / 0 for name, value in saved.values.items()}
    checkpoint.save(other / "ckpt", 7, broken, {}, saved.facts | {"step": 7})
    with pytest.raises(DivergedError, match=r"The initial value 'model.0.1.weight' is not finite"):
        trained(tmp_path / "run", init_from=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze": ["model.2.*"]}, r"train.freeze was \['model.0.\*'\] when the run began"),
        ({"init_from": "elsewhere"}, "train.init_from was None when the run began"),
        ({"init_patterns": ["model.*"]}, r"train\.init_patterns: there is no run to take values from"),
    ],
)
def test_a_resume_cannot_change_how_the_run_began(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    trained(tmp_path / "run", freeze=["model.0.*"], steps=2)
    with pytest.raises(ConfigError, match=message):
        resumed(tmp_path / "run", steps=4, **change)
    assert resumed(tmp_path / "run", steps=4).summary["resumed"]["exact"]


def test_a_run_whose_first_checkpoint_was_removed_does_not_begin_with_other_values(
    source: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "run", init_from=source, steps=0)
    shutil.rmtree(tmp_path / "run" / "ckpt")
    with pytest.raises(CheckpointError, match="checkpoints of this run are missing, with the initial values"):
        resumed(tmp_path / "run")


@pytest.mark.parametrize("engine", [{"plan": "loop"}, {"plan": "vmap"}, {"plan": "fold"}, {"compile": "on"}])
def test_frozen_values_keep_every_bit(engine: dict[str, str], tmp_path: Path) -> None:
    patterns = ["model.0.*", "adapters.*.model.2.weight"]
    settings = {"train": {"weight_decay": 0.1}, "engine": {"threads": 1, **engine}}
    more = {"adapters": ["meta-sgd"], "freeze": patterns, "settings": settings}
    before, after = (trained(tmp_path / str(steps), steps=steps, **more).values for steps in (0, 4))
    frozen = set(json.loads((tmp_path / "4" / "env.json").read_text())["frozen"])
    assert len(frozen) == 5
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen
