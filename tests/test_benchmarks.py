"""The benchmarks compare equal work: MetaForge's meta-gradients equal those of a plain loop and of other libraries."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import learners, performance_page, which_method
from benchmarks.comparison import EQUAL
from benchmarks.contestants import PEERS, Work, metaforge
from benchmarks.learner_loops.initialisations import fomaml
from benchmarks.learner_loops.plain import Plain
from benchmarks.learners import LearnerWork
from benchmarks.performance_page import page_text
from benchmarks.prototypes import ProtoWork, metaforge_prototypes, plain_prototypes
from benchmarks.speed import CASES
from benchmarks.timing import projection_difference, projections, relative_difference, started_contestants
from metaforge.authoring.protocols import Examples, Params, Task, TaskShape
from metaforge.registry.scan import scan

IMAGES = Work(
    "classification",
    (1, 28, 28),
    TaskShape(3, 1, 2),
    "conv4",
    {"variant": "stride", "filters": 4},
    tasks=2,
    steps=2,
    lr=0.1,
    dtype=torch.float64,
)
WORKS = {
    "curves": Work("regression", (1,), TaskShape(1, 5, 5), "mlp", {"widths": [8]}, 2, 3, 0.01, torch.float64),
    "images": IMAGES,
    "pooled": replace(IMAGES, options={"variant": "pool", "filters": 4}),
}


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", WORKS)
def test_meta_gradients_equal_those_of_the_peers(name: str, peer: str, plan: str) -> None:
    if " " not in peer and find_spec(peer) is None:
        pytest.skip(f"needs {peer}: pip install 'metaforge[bench]'")
    theirs, ours = PEERS[peer](WORKS[name])(), metaforge(WORKS[name], plan=plan)()
    assert relative_difference(theirs, ours) < 1e-12
    assert projection_difference(projections(theirs), projections(ours)) < 1e-12
    assert projection_difference(projections(theirs), projections([2 * value for value in ours])) > 0.5


def test_gradients_of_prototypes_equal_those_of_a_plain_loop() -> None:
    work = ProtoWork(ways=3, tasks=2, queries=2, dtype=torch.float64)
    assert relative_difference(plain_prototypes(work)(), metaforge_prototypes(work)()) < 1e-10


def learner_work(case: str) -> LearnerWork:
    """Return the work of a case in float64 on two tasks, of curves or of small images."""
    work: LearnerWork = replace(learners.CASES[case].work, tasks=2, dtype=torch.float64)
    if work.episodes.kind == "regression":
        return work
    shape = TaskShape(6, 1, 1) if work.chosen.pretrains else TaskShape(3, 1, 2)
    options = {**work.episodes.options, "filters": 4}
    # The networks of `relation` have more poolings.
    size = 28 if work.method == "relation" else 16
    images = replace(work.episodes, x_shape=(1, size, size), shape=shape, options=options)
    return replace(work, episodes=images)


@pytest.mark.parametrize("case", learners.CASES)
def test_gradients_of_a_learner_equal_those_of_its_plain_loop_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = learner_work(case)
    ours = learners.metaforge(work)()
    assert relative_difference(learners.plain_loop(work)(), ours) < EQUAL
    wrong = work.plain()
    if work.steps:
        wrong.options = wrong.options.model_copy(update={"steps": work.steps - 1})
    else:
        monkeypatch.setitem(learners.METHODS, work.method, work.chosen._replace(loss=with_other_labels(work)))
    assert relative_difference(learners.plain_loop(work, wrong)(), ours) > 1e4 * EQUAL


def with_other_labels(work: LearnerWork) -> Callable[..., Tensor]:
    """Return the loss of a method on tasks whose support examples have each other's labels."""
    loss = work.chosen.loss

    def other(values: Params, task: Task, plain: Plain, *drawn: Tensor) -> Tensor:
        x, y = task.support
        return loss(values, task._replace(support=Examples(x, y.flip(0))), plain, *drawn)

    return other


@pytest.mark.parametrize("case", ["maml-sinusoid", "maml-conv4"])
def test_a_loop_of_first_order_has_another_gradient_than_maml(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = learner_work(case)
    ours = learners.metaforge(work)()
    monkeypatch.setitem(learners.METHODS, "maml", learners.METHODS["maml"]._replace(loss=fomaml))
    assert relative_difference(learners.plain_loop(work)(), ours) > 1e4 * EQUAL


def test_the_page_has_a_row_for_each_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_page, "RECORDS", tmp_path)
    names = {"a plain loop": 1.0, "MetaForge": 3.0, "MetaForge compiled": 30.0}
    rows = [
        {"who": who, "ms": 60 / speed, "times a plain loop": speed, "goal": "20", "in float64": f"{1e-15 * speed:.0e}"}
        for who, speed in names.items()
    ]
    facts = {"method": "maml + meta-sgd", "network": "mlp", "tasks": 25, "steps": 1}
    performance_page.write_record("learners", "meta-sgd-sinusoid", {"title": "", "rows": rows, **facts})
    performance_page.write_record("learners", "kfo-sinusoid", {"title": "", "rows": rows[:2], **facts})
    page = page_text()
    assert "| maml + meta-sgd | mlp | 25 | 1 | 60 | 3 | 30 | 20 | 3e-14 |" in page
    assert "| maml + meta-sgd | mlp | 25 | 1 | 60 | 3 |  | 20 | 3e-15 |" in page


def test_a_contestant_process_reports_its_gradient_and_its_time() -> None:
    with started_contestants("speed", "sinusoid-1", ["a plain loop"]) as running:
        contestant = running["a plain loop"]
        expected = projections(PEERS["a plain loop"](CASES["sinusoid-1"].work)())
        assert projection_difference(expected, contestant.projections) < 1e-5
        assert 0 < contestant.turn() < 60


def test_the_performance_page_is_written_from_the_records() -> None:
    page = Path(__file__).parents[1] / "docs" / "performance.md"
    assert page.read_text("utf-8") == page_text(), "python -m benchmarks table"


def test_the_page_on_methods_is_written_from_the_records_and_names_every_learner() -> None:
    assert which_method.PAGE.read_text("utf-8") == which_method.page()
    described = {entry["learner"] for entry in tomllib.loads(which_method.WORDS.read_text("utf-8"))["method"]}
    assert {entry.name for entry in scan().entries("learner") if entry.distribution == "metaforge"} <= described


def test_the_best_run_of_each_learner_is_on_the_protocol() -> None:
    for learner, row in which_method.best_runs().items():
        assert row.evaluation["learner"] == learner
        assert (row.evaluation["ways"], row.evaluation["shots"], row.evaluation["dataset"]) == (5, 1, "omniglot")
        assert not row.run.name.startswith("small-")
