"""Tests of what an evaluation computes: shapes or varied tasks, steps, and learners that cannot take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fake_runs import FakeRun, Pixels, Reader
from metaforge.authoring.protocols import Tags, TaskShape
from metaforge.data.varied import EpisodeBounds
from metaforge.errors import ConfigError
from metaforge.results.episode_scores import score_episodes, together
from metaforge.results.evaluate import evaluate_run
from metaforge.results.evaluation_cases import (
    evaluation_case,
    evaluation_shapes,
    plugin_name,
    require_class_sizes,
    require_varied,
    varied_bounds,
)
from metaforge.results.records import read_evaluations
from metaforge.testing.toy import ToyClasses, ToyTasksOptions

VARIED = {"task": {"sampler": "varied"}, "varied": {"min_ways": 3, "max_ways": 5, "queries": 2, "support": 9}}


class Nearest(Reader):
    """Classifies by the nearest support example; any shape of tasks will do."""

    tags = Tags(fixed_ways=False, varied_shots=True)

    def adapt(self, values: Any, support: Any, *, steps: Any = None, key: Any = None) -> Any:
        return support

    def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any:
        nearest = torch.cdist(x, fast.x).argmin(-1)
        return (fast.y[nearest].unsqueeze(-1) == torch.arange(self.ways)).to(x.dtype)


def toy_run(folder: Path | None = None, **settings: Any) -> FakeRun:
    return FakeRun(folder, ToyClasses(ToyTasksOptions(), root=Path()), Nearest, **{**VARIED, **settings})


def test_shapes_are_those_that_are_asked_for() -> None:
    fixed, varied = FakeRun(None), toy_run()
    bounds = varied_bounds(varied.resolved.run)
    assert bounds == EpisodeBounds(3, 5, 2, 9, 100, 2.0)
    assert evaluation_shapes(fixed, None, None) == [TaskShape(5, 1, 15)]
    assert evaluation_shapes(fixed, 3, [1, 2, 1]) == [TaskShape(3, 1, 15), TaskShape(3, 2, 15)]
    assert evaluation_shapes(fixed, None, [1, 2], queries=4) == [TaskShape(5, 1, 4), TaskShape(5, 2, 4)]
    assert evaluation_shapes(varied, None, None, queries=4) == [TaskShape(5, 1, 4)]
    assert evaluation_shapes(varied, None, []) == [bounds]
    assert evaluation_shapes(varied, None, None, "fixed") == evaluation_shapes(varied, 5, None) == [TaskShape(5, 1, 15)]
    assert evaluation_shapes(fixed, None, None, "varied") == [EpisodeBounds()]
    with pytest.raises(ConfigError, match="The sampler is 'other'"):
        evaluation_shapes(fixed, None, None, "other")  # type: ignore[arg-type]


def test_varied_episodes_have_the_scores_of_each_alone() -> None:
    run = toy_run()
    case = evaluation_case(run, "test", varied_bounds(run.resolved.run), None)
    assert (case.spec.outputs, together(case, run.device, None)) == (5, 16)
    settings: dict[str, Any] = {
        "split": "test", "seed": 1, "device": run.device, "dtype": torch.float64, "plan": "vmap", "measure": True,
    }  # fmt: skip
    whole = score_episodes(case, run.values, run.dataset, range(3, 43), rescore=True, **settings)
    alone = [score_episodes(case, run.values, run.dataset, range(n, n + 1), **settings) for n in range(3, 43)]
    assert len(whole.batches) < 40
    assert len({*whole.scores[0].tolist()}) > 4
    torch.testing.assert_close(whole.scores[0], torch.cat([one.scores[0] for one in alone]))
    torch.testing.assert_close(whole.measures["key"], torch.cat([one.measures["key"] for one in alone]))
    for batch in whole.batches:
        assert case.learner_for(batch.spec) is case.learner_for(batch.spec)


def test_the_record_of_varied_tasks_has_their_sizes(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    result = evaluate_run(run, shots=None, steps=None, tasks=40, split="test", seed=1)
    (record,) = read_evaluations(tmp_path)
    assert (tmp_path / "evaluation" / "test-varied.json").is_file()
    assert record["varied"] == result["results"][0]["varied"]
    per_task = record["per_task"]
    for name in ("ways", "support", "queries"):
        assert record["varied"][name] == [min(per_task[name]), max(per_task[name])]
    assert per_task["chance"] == [1 / ways for ways in per_task["ways"]]
    # The learner is the baseline itself.
    assert per_task["scores"]["after"] == pytest.approx(per_task["floor"])
    case = evaluation_case(run, "test", varied_bounds(run.resolved.run), None)
    for number in (0, 17, 39):
        scores = score_episodes(
            case, run.values, run.dataset, range(number, number + 1), split="test", seed=1, device=run.device,
            dtype=run.dtype, plan="loop",
        )  # fmt: skip
        assert per_task["ways"][number] == scores.batches[0].spec.shape.ways
        assert per_task["support"][number] == scores.batches[0].tasks.support.y.shape[1]


def test_what_a_learner_or_data_set_cannot_do_is_refused_by_name() -> None:
    bounds = EpisodeBounds(5, 5)
    require_varied("one", Tags(varied_shots=True), 5, bounds, "somewhere")
    require_varied("one", Tags(varied_shots=True, fixed_ways=False), 3, bounds, "somewhere")
    with pytest.raises(ConfigError, match="'one' does not take tasks whose classes have different numbers"):
        require_varied("one", Tags(fixed_ways=False), 5, bounds, "somewhere")
    for ways, wrong in ((3, bounds), (5, EpisodeBounds(5, 6)), (5, EpisodeBounds(4, 5))):
        with pytest.raises(ConfigError, match="'one' has one output per class"):
            require_varied("one", Tags(varied_shots=True), ways, wrong, "somewhere")
    with pytest.raises(ConfigError, match="'dots' gives no sizes of the classes of 'test'"):
        require_class_sizes(Pixels(), "test", "dots")


def test_a_plugin_that_the_configuration_does_not_name_has_the_name_of_its_class() -> None:
    run = FakeRun(None)
    assert plugin_name(run.resolved.learner, Reader()) == "reader"
    assert plugin_name(None, Reader()) == "Reader"
