"""Two distributions that offer one plugin name: a run keeps to the distribution that it was trained with."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metaforge
from distributions import installer
from metaforge.config.sources import Layer
from metaforge.errors import PluginError
from metaforge.registry.scan import scan
from metaforge.runs.resume import configuration
from metaforge.runs.training import run_training
from tests.reliability.small_runs import digest

# The steps of each distribution have another length, so its values show which of them a run has used.
SOURCE = """
    from metaforge_plugins.adapters.sgd import SGD
    from metaforge_plugins.learners.gradient.maml import MAML

    class Mine(MAML):
        pass

    class Pace(SGD):
        def update(self, meta, grads, state, params, step):
            return super().update(meta, {{name: {factor} * grad for name, grad in grads.items()}}, state, params, step)
"""
POINTS = "[metaforge.learners]\nmine = {module}:Mine\n[metaforge.adapters]\npace = {module}:Pace\n"
FACTORS = {"mf-a": 0.5, "mf-b": 2.0}


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of installed distributions, in which `mf-a` is."""
    monkeypatch.syspath_prepend(tmp_path)
    offer(tmp_path, "mf-a")
    for module in ("mf_a", "mf_b"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def offer(prefix: Path, distribution: str) -> None:
    points = POINTS.format(module=distribution.replace("-", "_"))
    installer(prefix)(distribution, points, SOURCE.format(factor=FACTORS[distribution]))
    importlib.invalidate_caches()


def withdraw(prefix: Path, distribution: str) -> None:
    shutil.rmtree(prefix / f"{distribution.replace('-', '_')}-1.2.dist-info")
    importlib.invalidate_caches()


def trained(out: Path, steps: int, learner: str = "mine", adapter: str = "pace") -> Path:
    settings = {"engine": {"threads": 1, "compile": "off"}, "train": {"log_every": 1}}
    metaforge.train(learner, "sinusoid", adapters=[adapter], steps=steps, tasks=2, settings=settings, out=out)
    return out


def resumed(folder: Path, steps: int = 4) -> Any:
    """Resume a run, and return what is recorded about that."""
    resolved = configuration(folder, [Layer("--steps", {"train": {"steps": steps}})], scan())
    return run_training(resolved, folder=folder, resuming=True).summary["resumed"]


def evaluated(folder: Path) -> Any:
    return metaforge.load(folder).evaluate(tasks=2)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_resumed_and_loaded_with_the_distribution_that_it_was_trained_with(prefix: Path) -> None:
    whole, run = trained(prefix / "whole", 4), trained(prefix / "run", 2)
    offer(prefix, "mf-b")
    with pytest.raises(PluginError, match="is ambiguous: 2 installed distributions offer it"):
        trained(prefix / "other", 1)
    assert resumed(run)["differences"] == []
    assert digest(run) == digest(whole)
    assert evaluated(run)["results"][0]["scores"] == evaluated(whole)["results"][0]["scores"]
    assert "mf_b" not in sys.modules
    # The settings did not change, so that they mean the same where only `mf-a` is installed.
    assert 'name = "mine"' in (run / "config.toml").read_text("utf-8")


@pytest.mark.parametrize("use", [resumed, evaluated])
def test_a_run_is_refused_without_the_distribution_that_it_was_trained_with(
    prefix: Path, use: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(prefix / "run", 2)
    offer(prefix, "mf-b")
    before = files_in(run)
    monkeypatch.setenv("METAFORGE_PLUGINS", "mf-b")
    with pytest.raises(PluginError, match=r"The learner 'mine' of mf-a 1\.2 cannot be used") as caught:
        use(run)
    assert "add mf-a to it" in caught.value.remedy
    monkeypatch.delenv("METAFORGE_PLUGINS")
    withdraw(prefix, "mf-a")
    expected = r"The learner 'mine' of mf-a 1\.2, with which the run was trained, is not installed\."
    with pytest.raises(PluginError, match=expected) as caught:
        use(run)
    assert "of this name there is the learner 'mine' of mf-b 1.2" in caught.value.where
    assert "pip install mf-a==1.2)" in caught.value.remedy
    assert "'mf-b:mine'" in caught.value.remedy
    assert "mf_b" not in sys.modules
    assert files_in(run) == before


def test_the_plugin_of_another_distribution_can_be_chosen_on_purpose(prefix: Path) -> None:
    run = trained(prefix / "run", 2)
    offer(prefix, "mf-b")
    withdraw(prefix, "mf-a")
    text = (run / "config.toml").read_text("utf-8").replace('name = "mine"', 'name = "mf-b:mine"')
    (run / "config.toml").write_text(text.replace("[adapters.pace]", '[adapters."mf-b:pace"]'), "utf-8")
    assert evaluated(run)["results"]
    assert "learner.name: mine -> mf-b:mine" in resumed(run)["differences"]
    assert "mf_b" in sys.modules


def test_a_run_that_names_the_distribution_is_resumed_exactly_when_the_other_is_gone(prefix: Path) -> None:
    offer(prefix, "mf-b")
    whole, run = (trained(prefix / str(steps), steps, "mf-a:mine", "mf-a:pace") for steps in (4, 2))
    withdraw(prefix, "mf-b")
    assert resumed(run)["differences"] == []
    assert digest(run) == digest(whole)
    withdraw(prefix, "mf-a")
    with pytest.raises(PluginError, match=r"The learner 'mf-a:mine' of mf-a 1\.2, .* is not installed") as caught:
        evaluated(run)
    assert "pip install mf-a==1.2)" in caught.value.remedy


def test_a_class_that_was_passed_in_python_must_be_passed_again(prefix: Path) -> None:
    from mf_a import Mine  # type: ignore[import-not-found]

    withdraw(prefix, "mf-a")
    registry = scan().with_plugin("learner", "mine", Mine)
    run = metaforge.train("mine", "sinusoid", adapters=["sgd"], steps=1, tasks=2, registry=registry, out=prefix / "run")
    offer(prefix, "mf-b")
    with pytest.raises(
        PluginError, match="'mine', with which the run was trained, was passed in Python code"
    ) as caught:
        metaforge.load(prefix / "run")
    assert "registry=scan().with_plugin('learner', 'mine', ...)" in caught.value.remedy
    assert metaforge.load(prefix / "run", registry=scan().with_plugin("learner", "mine", Mine)).values.keys() == {
        *run.values
    }
