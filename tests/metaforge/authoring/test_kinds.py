"""The kinds of tasks: what each asks for, on tasks whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fake_runs import Pixels
from metaforge.authoring.functional import one_task
from metaforge.authoring.kinds import (
    CLASSIFICATION,
    INTERACTION,
    KINDS,
    MULTI_LABEL,
    REGRESSION,
    TaskKind,
    criterion,
    nearest_targets,
    score,
    task_kind,
    task_loss,
)
from metaforge.authoring.losses import cross_entropy, mean_squared_error
from metaforge.authoring.protocols import Examples, Tags, Task, TaskShape, TaskSpec
from metaforge.errors import ContractError


def baselines(kind: TaskKind, task: Task, *, ways: int = 1, outputs: int = 1) -> list[float]:
    """Return chance level and floor of a task."""
    spec = TaskSpec(kind, (1,), outputs, TaskShape(ways, 2, 2))
    assert kind.chance is not None
    assert kind.floor is not None
    return [float(kind.chance(task, spec)), float(kind.floor(task, spec))]


def test_baselines_of_a_classification_task() -> None:
    support = Examples(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 2]))
    query = Examples(torch.tensor([[0.1], [0.9], [1.0], [0.4]]), torch.tensor([0, 1, 2, 1]))
    # Two examples are equally near to the third query: the first is used, and its class is 1.
    assert baselines(CLASSIFICATION, Task(support, query), ways=3, outputs=3) == [1 / 3, 0.5]


def test_baselines_of_a_regression_task() -> None:
    """y = 2 x with support at 0 and 2: the mean of the support is 2, the nearest targets of the queries 0 and 4."""
    support = Examples(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]]))
    query = Examples(torch.tensor([[0.5], [1.5]]), torch.tensor([[1.0], [3.0]]))
    assert baselines(REGRESSION, Task(support, query)) == [1.0, 1.0]


def test_baselines_of_a_multi_label_task() -> None:
    """The first label is set in two of three support examples, the second in one: the majority is (1, 0)."""
    support = Examples(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    query = Examples(torch.tensor([[0.2], [4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert baselines(MULTI_LABEL, Task(support, query), outputs=2) == [0.5, 1.0]


def test_a_label_of_half_of_the_support_set_is_not_in_the_majority() -> None:
    support = Examples(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]]))
    assert baselines(MULTI_LABEL, Task(support, support)) == [0.5, 1.0]


def test_bytes_and_floats_have_the_same_nearest_neighbour() -> None:
    task = one_task(Pixels().sample("test", TaskShape(3, 1, 2), 1, 1, seed=0))
    floats = Task(*(Examples(part.x / 255, part.y) for part in (task.support, task.query)))
    assert torch.equal(nearest_targets(task), nearest_targets(floats))


def test_interaction_increases_the_return_and_compares_it_with_nothing() -> None:
    returns = torch.tensor([[1.0], [-4.0]], dtype=torch.float64)
    assert INTERACTION.score(returns, torch.full((2, 1), torch.nan)) == -1.5
    assert INTERACTION.loss(returns, torch.full((2, 1), torch.nan)) == 1.5
    assert (INTERACTION.chance, INTERACTION.floor) == (None, None)
    assert INTERACTION.needs_key
    assert not INTERACTION.supervised


@pytest.mark.parametrize(
    ("kind", "y", "good", "bad"),
    [
        (CLASSIFICATION, torch.tensor([1, 0]), [[0.0, 2.0], [2.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]),
        (REGRESSION, torch.tensor([[1.0], [0.0]]), [[1.0], [0.1]], [[3.0], [-5.0]]),
        (MULTI_LABEL, torch.tensor([[1.0, 0.0]]), [[2.0, -1.0]], [[-2.0, -1.0]]),
        (INTERACTION, torch.zeros(2, 1), [[3.0], [-1.0]], [[2.0], [-4.0]]),
    ],
    ids=lambda one: one.name if isinstance(one, TaskKind) else "",
)
def test_a_better_prediction_has_a_lower_loss_and_a_better_score(
    kind: TaskKind, y: torch.Tensor, good: list[list[float]], bad: list[list[float]]
) -> None:
    losses = [float(kind.loss(torch.tensor(prediction), y)) for prediction in (good, bad)]
    scores = [float(kind.score(torch.tensor(prediction), y)) for prediction in (good, bad)]
    assert losses[0] < losses[1]
    assert scores[0] != scores[1]
    assert (scores[0] > scores[1]) is kind.scale.higher_is_better
    lowest, highest = kind.scale.bounds
    assert lowest is None or min(scores) >= lowest
    assert highest is None or max(scores) <= highest


def test_names_stand_for_the_built_in_kinds_alone() -> None:
    own = replace(REGRESSION, name="own")
    assert [task_kind(name) for name in KINDS] == [CLASSIFICATION, REGRESSION, MULTI_LABEL, INTERACTION]
    assert task_kind(own) is own
    for wrong in ("own", "Classification", "", 3):
        with pytest.raises(ContractError, match="is neither a TaskKind nor one of classification, regression"):
            task_kind(wrong)  # type: ignore[arg-type]
    with pytest.raises(ContractError):
        TaskSpec("own", (1,), 1, TaskShape(1, 1, 1))  # type: ignore[arg-type]
    assert TaskSpec("regression", (1,), 1, TaskShape(1, 1, 1)).kind is REGRESSION  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "x" * 101, "red\x1b"])
def test_a_kind_has_a_printable_name(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a kind of task"):
        replace(REGRESSION, name=name)


def test_losses_and_scores_by_kind() -> None:
    logits = torch.tensor([[0.5, 2.0], [1.0, 0.0]])
    assert criterion("classification") is cross_entropy
    assert criterion(REGRESSION) is mean_squared_error
    assert score("classification", logits, logits.argmax(-1)) == 1
    assert score(REGRESSION, logits, logits + 2) == 4


def test_targets_have_the_shape_of_their_kind() -> None:
    assert CLASSIFICATION.shape_of_target(5) == ()
    assert MULTI_LABEL.shape_of_target(5) == (5,)
    assert replace(REGRESSION, name="angle", target_shape=(1,)).shape_of_target(2) == (1,)


def test_labels_are_zeros_and_ones() -> None:
    wrong = MULTI_LABEL.wrong_targets
    assert wrong is not None
    assert wrong(torch.tensor([[0.0, 1.0]])) == ""
    assert wrong(torch.tensor([[0.0, 0.5]])) == "have the value 0.5, but should be 0 or 1"


def test_a_learner_solves_the_kinds_that_it_names_and_others_if_it_says_so() -> None:
    own, narrow, open_ = replace(REGRESSION, name="own"), Tags(), Tags(other_kinds=True)
    noisy = replace(own, needs_key=True)
    assert CLASSIFICATION.solved_by(narrow)
    assert [kind.solved_by(narrow) for kind in (own, MULTI_LABEL, INTERACTION)] == [False, False, False]
    assert [kind.solved_by(open_) for kind in (own, MULTI_LABEL, INTERACTION, noisy)] == [True, True, False, False]
    assert INTERACTION.solved_by(Tags(kinds=frozenset({"interaction"})))
    assert repr(own) == "TaskKind('own')"


def test_a_score_or_a_loss_that_is_no_scalar_is_named_with_its_kind() -> None:
    own = replace(REGRESSION, name="own", loss=lambda p, y: (p - y).mean(-1), score=lambda p, y: 3.0)
    prediction = torch.zeros(4, 2)
    with pytest.raises(ContractError, match="the score of the kind 'own' is a float, not a scalar tensor") as caught:
        score(own, prediction, prediction)
    assert caught.value.owner is own
    with pytest.raises(ContractError, match=r"the loss of the kind 'own' is a tensor of shape \[4\]") as caught:
        task_loss(own, prediction, prediction)
    assert caught.value.owner is own
