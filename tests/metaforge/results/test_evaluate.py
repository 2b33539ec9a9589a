"""Evaluation of tasks whose scores are known: means, intervals, baselines, records and refusals."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import metaforge
from failing_learners import train_failing
from fake_runs import FakeRun, Proportional, Reader, interaction_run, regression_run
from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import CLASSIFICATION, REGRESSION
from metaforge.authoring.protocols import Tags, TaskShape, TaskSpec
from metaforge.authoring.scale import ACCURACY as ACCURACY_SCALE
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.scan import scan
from metaforge.results.records import read_evaluations, scale_of, shape_text
from metaforge.results.statistics import mean_and_ci
from metaforge.testing.toy import ToyClasses, ToyLearner, ToyNet
from run_folders import run_evaluation

# In odd episodes the queries show the wrong class; in every fourth the learner predicts wrongly on purpose.
ACCURACY = [0.0, 0.0, 1.0, 0.0]


def test_scores_by_steps_and_both_baselines_are_as_expected(tmp_path: Path) -> None:
    summary = run_evaluation(FakeRun(tmp_path))
    (result,) = summary["results"]
    assert [one["steps"] for one in result["scores"]] == [0, 2]
    before, after = result["scores"]
    assert before["mean"] == pytest.approx(0.2)
    assert before["ci"] == pytest.approx(0.0, abs=1e-9)
    assert {name: after[name] for name in ("mean", "sd", "ci", "tasks")} == pytest.approx(mean_and_ci(ACCURACY * 2))
    assert result["chance"]["mean"] == pytest.approx(0.2)
    # The nearest neighbour is correct in even episodes and wrong in odd ones.
    assert result["floor"]["mean"] == 0.5
    assert result["floor"]["ci"] == pytest.approx(1.96 * math.sqrt(8 / 7 / 4) / math.sqrt(8))


def test_the_file_has_everything_and_the_result_all_but_the_values_of_every_task(tmp_path: Path) -> None:
    summary = run_evaluation(FakeRun(tmp_path), shots=[1, 3])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["test-5w1s.json", "test-5w3s.json"]
    record = json.loads((tmp_path / "evaluation" / "test-5w3s.json").read_text())
    tasks = record.pop("per_task")
    assert record == summary["results"][1]
    assert tasks["scores"]["2"] == pytest.approx(ACCURACY * 2)
    assert tasks["scores"]["0"] == pytest.approx([0.2] * 8)
    assert tasks["floor"] == pytest.approx([1.0, 0.0] * 4)
    assert (record["shots"], record["ways"], record["queries"]) == (3, 5, 15)
    assert (record["norm"], record["transductive"], record["metric"]) == ("support", True, "accuracy")
    assert (record["learner"], record["dataset"], record["note"]) == ("reader", "pixels", "The data are synthetic.")


def test_the_learners_own_metrics_are_averaged_and_get_the_keys_of_the_episodes(tmp_path: Path) -> None:
    (result,) = run_evaluation(FakeRun(tmp_path))["results"]
    assert result["measures"]["instance 1"] == {"mean": 0.25, "sd": 0.0, "ci": 0.0, "tasks": 8}
    expected = [int(make_key(7, "test", index)) % 1024 for index in range(8)]
    record = json.loads((tmp_path / "evaluation" / "test-5w1s.json").read_text())
    assert record["per_task"]["measures"]["key"] == expected


def test_metrics_of_the_data_set_are_beside_those_of_the_learner(tmp_path: Path) -> None:
    def numbers(split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> dict[str, list[float]]:
        assert (split, shape, seed) == ("test", TaskShape(5, 1, 15), 7)
        return {"best": [float(number) for number in range(first, first + count)]}

    run = FakeRun(tmp_path, engine={"chunk": 3})
    run.dataset.measure = numbers
    (result,) = run_evaluation(run)["results"]
    assert result["measures"]["best"]["mean"] == 3.5
    assert set(result["measures"]) == {"best", "instance 1", "key"}
    record = json.loads(next((tmp_path / "evaluation").iterdir()).read_text())
    assert record["per_task"]["measures"]["best"] == list(range(8))


@pytest.mark.parametrize("engine", [{"plan": "loop"}, {"plan": "vmap", "chunk": 3}, {"plan": "vmap", "chunk": 8}])
def test_plan_and_chunk_change_nothing(engine: dict[str, Any]) -> None:
    assert run_evaluation(FakeRun(None, engine=engine)) == run_evaluation(FakeRun(None))


def test_every_episode_is_sampled_once_in_order_under_the_evaluations_seed() -> None:
    run = FakeRun(None, engine={"chunk": 3})
    run_evaluation(run)
    assert [(split, first, count, seed) for split, _, first, count, seed in run.dataset.sampled] == [
        ("test", 0, 3, 7),
        ("test", 3, 3, 7),
        ("test", 6, 2, 7),
    ]


def test_progress_counts_every_evaluation_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    run_evaluation(
        FakeRun(None, engine={"chunk": 4}), shots=[1, 2], steps=[0, 1, 2], progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(12, 48), (24, 48), (36, 48), (48, 48)]


def test_a_result_on_few_tasks_has_a_warning() -> None:
    assert "Only 8 tasks" in run_evaluation(FakeRun(None))["warn"]
    assert run_evaluation(FakeRun(None), tasks=600)["warn"] == ""


def test_regression_is_compared_with_the_support_mean_and_the_nearest_point(tmp_path: Path) -> None:
    """Task i is y = (i + 1) x with support at 0 and 2, queries at 0.25 to 1.75; the learner predicts y = x."""
    summary = run_evaluation(regression_run(tmp_path), tasks=3)
    (result,) = summary["results"]
    slopes = (1.0, 2.0, 3.0)
    x = (0.25, 0.75, 1.25, 1.75)
    after = [sum((slope * v - v) ** 2 for v in x) / 4 for slope in slopes]
    assert result["scores"][1]["mean"] == pytest.approx(sum(after) / 3)
    chance = [sum((slope * v - slope) ** 2 for v in x) / 4 for slope in slopes]
    assert result["chance"]["mean"] == pytest.approx(sum(chance) / 3)
    floor = [slope**2 * (0.25**2 + 0.75**2) / 2 for slope in slopes]
    assert result["floor"] == pytest.approx(mean_and_ci(floor))
    assert (summary["metric"], result["kind"]) == ("mse", "regression")


def test_a_kind_without_baselines_has_none_and_its_noise_is_that_of_the_episode(tmp_path: Path) -> None:
    summary = run_evaluation(interaction_run(tmp_path))
    (result,) = summary["results"]
    before, after = (one["mean"] for one in result["scores"])
    assert before == pytest.approx(-1, abs=0.02)
    assert after == pytest.approx(0, abs=0.02)
    assert (result["metric"], result["kind"], result["chance"], result["floor"]) == (
        "return",
        "interaction",
        None,
        None,
    )
    assert (result["scale"]["higher_is_better"], result["scale"]["percent"]) == (True, False)
    (record,) = read_evaluations(tmp_path)
    assert (record["per_task"]["chance"], record["per_task"]["floor"]) == ([], [])
    again = run_evaluation(interaction_run(None))["results"][0]
    assert again["scores"] == result["scores"]
    # The keys depend on the seed of the evaluation.
    assert run_evaluation(interaction_run(None), seed=8)["results"][0]["scores"] != result["scores"]


def test_the_record_of_a_kind_with_classes_calls_its_tasks_by_their_ways() -> None:
    (result,) = run_evaluation(FakeRun(None))["results"]
    assert shape_text(result) == "5-way 1-shot"
    assert scale_of(result) == ACCURACY_SCALE


def test_a_learner_without_steps_is_evaluated_once_and_refuses_steps() -> None:
    class Still(Reader):
        tags = Tags(fixed_ways=False)

    (result,) = run_evaluation(FakeRun(None, learner=Still))["results"]
    assert [one["steps"] for one in result["scores"]] == [None]
    with pytest.raises(ConfigError, match="does not adapt in steps"):
        run_evaluation(FakeRun(None, learner=Still), steps=[1])


def test_fixed_ways_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    with pytest.raises(ConfigError, match="trained on 5 ways") as caught:
        run_evaluation(run, ways=3)
    assert caught.value.remedy
    assert run.dataset.sampled == []

    class Free(Reader):
        tags = Tags(fixed_ways=False)

    assert run_evaluation(FakeRun(None, learner=Free), ways=3)["ways"] == 3


def test_another_number_of_queries_can_be_asked_for() -> None:
    assert run_evaluation(FakeRun(None), queries=4)["results"][0]["queries"] == 4
    with pytest.raises(ConfigError, match=r"evaluate\.queries has 0, but should be 1 or more"):
        run_evaluation(FakeRun(None), queries=0)


def test_predictions_that_are_not_finite_give_no_score(tmp_path: Path) -> None:
    class Broken(Proportional):
        def predict(self, values: Any, fast: Any, x: torch.Tensor, *, key: Any = None) -> torch.Tensor:
            return super().predict(values, fast, x) / (fast != 2)

    run = regression_run(tmp_path)
    run.make = Broken
    summary = run_evaluation(run, tasks=3)
    first, last = summary["results"][0]["scores"]
    assert first["mean"] is not None
    assert (last["mean"], last["tasks"]) == (None, 0)
    assert "On 3 of 3 tasks the predictions after 2 adaptation steps are not finite." in summary["warn"]


def test_a_score_that_is_not_finite_is_the_fault_of_its_kind(tmp_path: Path) -> None:
    kind = replace(REGRESSION, name="mine", score=lambda p, y: (p.mean() - p.mean()) / (p.abs().max() == 0))
    run = regression_run(tmp_path)
    run.dataset.kind = kind
    run.dataset.spec = lambda split, shape: TaskSpec(kind, (1,), 1, shape)
    summary = run_evaluation(run, tasks=3)
    assert [one["tasks"] for one in summary["results"][0]["scores"]] == [3, 0]
    sentence = "On 3 of 3 tasks the score of the kind 'mine' after 2 adaptation steps is not finite, although the"
    assert f"{sentence} predictions are." in summary["warn"]
    assert "the predictions after" not in summary["warn"]


@pytest.mark.parametrize("baseline", ["floor", "chance"])
def test_a_baseline_that_fails_names_the_data_set(tmp_path: Path, baseline: str) -> None:
    class Sloping(ToyClasses):
        kind = replace(CLASSIFICATION, name="sloping", **{baseline: lambda task, spec: 1 / 0})
        defaults: ClassVar = {"sloping": {"task": {"ways": 3, "shots": 2, "queries": 3}}}

    registry = scan().with_plugin("dataset", "slope", Sloping).with_plugin("backbone", "net", ToyNet)
    settings = {"backbone": {"name": "net"}, "adapters": {"sgd": {"lr": 0.1}}, "train": {"steps": 1, "tasks": 2}}
    run = metaforge.train("maml", "slope", settings=settings, out=tmp_path / "run", registry=registry)
    with pytest.raises(PluginError, match=r"The dataset 'slope' of python raised ZeroDivisionError in its baselines"):
        run.evaluate(tasks=2)


@pytest.mark.parametrize("wrong", [{"best": [1.0]}, {"best": [1.0] * 3}, {"own": [1.0] * 2}])
def test_metrics_of_the_data_set_that_do_not_suit_are_its_fault(tmp_path: Path, wrong: dict[str, list[float]]) -> None:
    class Odd(ToyClasses):
        defaults: ClassVar = {"classification": {"task": {"ways": 3, "shots": 2, "queries": 3}}}

        def measure(self, *_: Any, **__: Any) -> dict[str, list[float]]:
            return wrong

    class Measuring(ToyLearner):
        def measure(self, values: Any, task: Any, key: Any) -> Any:
            return {"own": task.query.x.mean()}

    registry = scan().with_plugin("dataset", "odd", Odd).with_plugin("backbone", "net", ToyNet)
    settings = {"backbone": {"name": "net"}, "adapters": {"sgd": {"lr": 0.1}}, "train": {"steps": 1, "tasks": 2}}
    registry = registry.with_plugin("learner", "measuring", Measuring)
    run = metaforge.train("measuring", "odd", settings=settings, out=tmp_path / "run", registry=registry)
    with pytest.raises(PluginError, match=r"The dataset 'odd' of python .*measure of the data set returns"):
        run.evaluate(tasks=2)


def test_a_metric_of_the_learner_that_is_not_finite_on_one_task_has_no_mean(tmp_path: Path) -> None:
    class Odd(Reader):
        def measure(self, values: Any, task: Any, key: Any) -> Any:
            return {"odd": values["w"] / (key != make_key(7, "test", 3))}

    (result,) = run_evaluation(FakeRun(tmp_path, learner=Odd))["results"]
    assert result["measures"]["odd"] == {"mean": None, "sd": None, "ci": None, "tasks": 7}
    record = json.loads((tmp_path / "evaluation" / "test-5w1s.json").read_text())
    assert record["per_task"]["measures"]["odd"] == [1.0, 1.0, 1.0, None, 1.0, 1.0, 1.0, 1.0]


def test_an_evaluation_on_no_tasks_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 tasks"):
        run_evaluation(FakeRun(None), tasks=0)


def test_later_checkpoints_that_cannot_be_used_are_in_the_warning(tmp_path: Path) -> None:
    summary = run_evaluation(FakeRun(tmp_path), tasks=600, saved={"steps": 4, "damaged": ["step 5 is damaged"]})
    assert (summary["step"], summary["damaged"]) == (4, ["step 5 is damaged"])
    assert summary["warn"] == "1 later checkpoint cannot be used: the scores are those of outer step 4."


@pytest.mark.parametrize(("name", "numbers"), [("shots", [0]), ("steps", [1, -1])])
def test_numbers_that_are_too_small_are_refused(name: str, numbers: list[int]) -> None:
    with pytest.raises(ConfigError, match=f"evaluate.{name} has {min(numbers)}, but should be"):
        run_evaluation(FakeRun(None), **{name: numbers})


@pytest.mark.parametrize("place", ["adapt", "predict", "measure"])
@pytest.mark.parametrize("fault", ["SystemExit", "AssertionError", "RecursionError", "changed values", "meta tensor"])
@pytest.mark.parametrize("plan", ["loop", "fold"])
def test_a_learner_that_fails_in_an_evaluation_is_named_with_the_episodes(
    tmp_path: Path, place: str, fault: str, plan: str
) -> None:
    # The first call of the other methods is made before the first step.
    call = 1 if place == "measure" else 2
    run = train_failing(tmp_path / "run", place=place, fault=fault, call=call, engine={"plan": plan, "chunk": 1})
    with pytest.raises(PluginError, match=r"'failing' of python .* on episodes \d to \d of the 'test' split:"):
        run.evaluate()


def test_a_learner_cannot_change_the_values_of_a_run(tmp_path: Path) -> None:
    run = train_failing(tmp_path / "run", place="adapt", fault="added value")
    names = list(run.values)
    run.evaluate()
    assert list(run.values) == names


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 10**21}, "evaluate.seed has 1000000000000000000000, but should be 9223372036854775807 or less"),
        ({"seed": -1}, "evaluate.seed has -1, but should be 0 or more"),
        ({"tasks": 10**21}, "evaluate.tasks has 1000000000000000000000, but should be"),
        ({"ways": 10**21}, "evaluate.ways has 1000000000000000000000, but should be 100000 or less"),
        ({"shots": [10**21]}, "evaluate.shots has 1000000000000000000000, but should be 100000 or less"),
        ({"split": "../x"}, "The split is '../x', which cannot be part of a file name"),
    ],
)
def test_what_no_record_could_hold_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """A seed of 22 digits was evaluated and saved, and later evaluations of the folder then failed."""
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        run_evaluation(FakeRun(tmp_path), **changes)
    assert not any(tmp_path.iterdir())
