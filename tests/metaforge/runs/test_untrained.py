"""Parameters whose gradient stays exactly zero are named, and those that are zero for a step only are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metaforge
from metaforge.runs.untrained import STEPS, UntrainedParameters

ZERO, ONE = torch.zeros(2), torch.tensor([0.0, 1.0])


def test_a_gradient_that_is_zero_in_all_of_the_first_steps_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    untrained = UntrainedParameters("learner Mine", prints=True)
    for step in range(STEPS + 2):
        untrained.see({"dead": ZERO, "late": ONE if step == 1 else ZERO, "alive": ONE, "none": torch.zeros(0)})
        assert bool(capsys.readouterr().err) is (step == STEPS - 1)
    silent = UntrainedParameters("learner Mine", prints=False)
    for _ in range(STEPS):
        silent.see({"dead": ZERO})
    assert not capsys.readouterr().err


def test_many_names_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    untrained = UntrainedParameters("learner Mine", prints=True)
    for _ in range(STEPS):
        untrained.see({f"dead.{number}": ZERO for number in range(8)} | {"alive": ONE})
    note = capsys.readouterr().err
    assert "dead.0, dead.1, dead.2, dead.3, dead.4 and 3 more was exactly zero" in note
    assert "the loss of the learner Mine does not" in note


GLYPHS = {"name": "glyphs", "train": 20, "val": 5, "test": 5}
SMALL = {"name": "conv4", "filters": 4, "variant": "stride"}
IMAGES: dict[str, Any] = {"dataset": GLYPHS, "backbone": SMALL, "tasks": 2}


@pytest.mark.parametrize(
    ("learner", "options", "named"),
    [
        ("reptile", {"dataset": "sinusoid", "adapters": {"meta-sgd": {"lr": 0.01}}}, "adapters.meta-sgd.rate."),
        ("reptile", {**IMAGES, "regularizers": ["meta-dropout"]}, "regularizers.meta-dropout."),
        ("maml", {"dataset": "sinusoid", "adapters": ["meta-sgd"]}, ""),
        ("maml", {**IMAGES, "regularizers": ["meta-dropout"]}, ""),
        ("fomaml", {"dataset": "sinusoid", "adapters": ["meta-sgd"]}, ""),
        ("protonet", IMAGES, ""),
        ("leo", IMAGES, ""),
        ("mann", {"dataset": GLYPHS, "tasks": 2}, ""),
        ("cnp", {"dataset": "sinusoid"}, ""),
    ],
)
def test_combinations_that_learn_nothing_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], learner: str, options: dict[str, Any], named: str
) -> None:
    settings: dict[str, Any] = {"train": {"validate_every": 0, "ways": 5, "queries": 2}, "task": {"queries": 2}}
    if options["dataset"] == "sinusoid":
        settings["train"] = {"validate_every": 0}
    if learner == "reptile":
        # By default the check of the predictions takes 50 inner steps.
        settings["learner"] = {"steps": 2, "test_steps": 1}
    metaforge.train(learner, steps=STEPS, out=tmp_path / "run", settings=settings, **options)
    note = capsys.readouterr().err
    assert ("exactly zero" in note) is bool(named)
    assert named in note
