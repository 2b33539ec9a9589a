"""The rules behind `auto`: plan, chunk size, compilation and threads follow from the size and length of a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine_toys import Fused, Inequality, Shrinkage, image_learner, images, maml
from metaforge.authoring.protocols import Options, TaskShape, TaskSpec
from metaforge.engine.plans import (
    Requested,
    Workload,
    choose_chunk,
    choose_plan,
    choose_threads,
    combining_regularizers,
    decide,
    even_chunk,
    reason_not_to_compile,
)
from metaforge.engine.probe import Probe
from metaforge.errors import ConfigError
from metaforge.system import machine
from metaforge_plugins.learners.metric.protonet import ProtoNet
from toys import assert_equal_steps, fresh, learner, step

CPU = torch.device("cpu")
SMALL = TaskSpec("regression", (1,), 1, TaskShape(1, 10, 10))
LARGE = TaskSpec("classification", (1, 28, 28), 5, TaskShape(5, 1, 15))
FUSED = Probe(("layer_norm",))


def workload(spec: TaskSpec = SMALL, **sizes: Any) -> Workload:
    return Workload(**{"spec": spec, "device": CPU, "tasks": 25, "groups": (25,), "steps": 10_000, **sizes})


def test_auto_is_fold_unless_a_learner_adapts_through_fused_norms() -> None:
    gradient, metric = maml(), learner(ProtoNet)
    for built in (gradient, metric):
        assert choose_plan(built, "auto") == "fold"
        assert [choose_plan(built, plan) for plan in ("loop", "vmap", "fold")] == ["loop", "vmap", "fold"]
    assert choose_plan(gradient, "auto", FUSED) == "vmap"
    assert choose_plan(metric, "auto", FUSED) == "fold"


def test_auto_is_loop_for_a_loss_that_vmap_cannot_run() -> None:
    branching = Probe(not_batched_because="vmap: it branches")
    assert choose_plan(maml(), "auto", branching) == "loop"
    assert choose_plan(maml(), "vmap", branching) == "vmap"
    assert "in one call" in reason_not_to_compile(Requested(compile="auto"), workload(), probe=branching)
    assert reason_not_to_compile(Requested(compile="on"), workload(), probe=branching) == ""


@pytest.mark.parametrize(
    ("queries", "training", "chunk"),
    # 23,520 and 62,720 numbers in a task: a batch of 16 stays whole with 5 queries and is divided with 15.
    [(5, True, 22), (15, True, 8), (5, False, 11), (15, False, 4)],
)
def test_the_chunk_size_follows_from_the_size_of_a_task(queries: int, training: bool, chunk: int) -> None:
    images = TaskSpec("classification", (1, 28, 28), 5, TaskShape(5, 1, queries))
    assert choose_chunk(images, CPU, None, training=training) == chunk
    assert choose_chunk(images, CPU, 3, training=training) == 3
    huge = TaskSpec("classification", (3, 800, 800), 5, TaskShape(5, 1, queries))
    assert choose_chunk(huge, CPU, None, training=training) == 1
    small = TaskSpec("regression", (1,), 1, TaskShape(1, 5, queries))
    assert choose_chunk(small, CPU, None, training=training) >= 100


def test_fold_is_refused_for_a_learner_that_adapts_through_fused_norms() -> None:
    built = image_learner(lambda: Fused(nn.BatchNorm2d(4)))
    values, batch = fresh(built), images(3)
    with pytest.raises(ConfigError, match="'fold' gives wrong meta-gradients with layer_norm"):
        choose_plan(built, "fold", FUSED)
    looped, folded = step(built, values, batch), step(built, values, batch, "fold")
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    # The reason for the rule: under `fold` the gradient is wrong, and no error is raised.
    wrong = {name: float((folded.grads[name] - looped.grads[name]).norm()) for name in looped.grads}
    assert max(wrong.values()) > 1e-6


@pytest.mark.parametrize(
    ("most", "groups", "size"),
    [(22, (25,), 22), (12, (25,), 12), (13, (24,), 12), (5, (5, 5), 5), (2, (1, 2, 2), 1), (8, (16,), 8)],
)
def test_chunks_of_a_compiled_step_have_one_size_if_that_is_at_least_half_of_the_largest(
    most: int, groups: tuple[int, ...], size: int
) -> None:
    assert even_chunk(most, groups) == size


def test_a_small_step_uses_one_thread() -> None:
    assert choose_threads(None, SMALL, 25) == 1
    assert choose_threads(None, LARGE, 4) is None
    assert choose_threads(3, SMALL, 25) == 3


def test_auto_compiles_a_long_training_of_a_small_network_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (reason_not_to_compile(Requested(compile="auto"), workload()) == "") == machine.has_compiler()
    monkeypatch.setattr(machine, "has_compiler", lambda: True)
    assert reason_not_to_compile(Requested(compile="auto"), workload()) == ""
    assert reason_not_to_compile(Requested(compile="auto"), workload(budget=200)) == ""
    assert "too short" in reason_not_to_compile(Requested(compile="auto"), workload(steps=100))
    assert "too short" in reason_not_to_compile(Requested(compile="auto"), workload(budget=30))
    assert "networks on images" in reason_not_to_compile(Requested(compile="auto"), workload(LARGE))
    assert "this device" in reason_not_to_compile(Requested(compile="auto"), workload(device=torch.device("cuda")))
    monkeypatch.setattr(machine, "has_compiler", lambda: False)
    assert reason_not_to_compile(Requested(compile="auto"), workload()) == "there is no C++ compiler"


def test_compilation_is_what_was_requested() -> None:
    short = workload(LARGE, steps=100)
    assert reason_not_to_compile(Requested(compile="on"), short) == ""
    assert reason_not_to_compile(Requested(compile="off"), short) == "engine.compile is off"


def test_a_regularizer_of_the_task_losses_is_compiled_with_all_tasks_in_one_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "has_compiler", lambda: True)
    regularizers = (Shrinkage(Options()), Inequality(Options()))
    assert combining_regularizers(regularizers, 25) == [regularizers[1]]
    assert decide(maml(), workload(), regularizers=regularizers) == ("fold", 25, True, 1, "")
    # On images a compiled chunk would be smaller without it.
    large, on = workload(LARGE, tasks=16, groups=(16,)), Requested(compile="on")
    assert decide(maml(), large, on).chunk == 4
    assert decide(maml(), large, on, regularizers=regularizers).chunk == 16
    for size, requested in (
        (workload(), Requested(chunk=5)),
        (workload(), Requested(plan="loop")),
        (workload(tasks=50), Requested()),
        (workload(groups=(10, 15)), Requested()),
    ):
        decision = decide(maml(), size, requested, regularizers=regularizers)
        assert "weighs each task by the losses of all tasks" in decision.not_compiled_because
        assert decide(maml(), size, requested, regularizers=regularizers[:1]).compiled
        with pytest.raises(ConfigError, match="A step with Inequality cannot be compiled") as caught:
            decide(maml(), size, requested._replace(compile="on"), regularizers=regularizers)
        assert caught.value.where == "engine.compile"


def test_a_decision_completes_the_requested_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_compiler", lambda: True)
    assert decide(maml(), workload()) == ("fold", 25, True, 1, "")
    short = "the run is too short to save the time of compilation"
    assert decide(maml(), workload(steps=1), probe=FUSED) == ("vmap", 25, False, 1, short)
    requested = Requested("loop", 3, "off", 2)
    assert decide(maml(), workload(), requested) == ("loop", 3, False, 2, "engine.compile is off")
    # No chunk is larger than a group, and those of a compiled step have one size unless a size is requested.
    uneven = workload(LARGE, tasks=12, groups=(6, 6))
    assert [decide(maml(), uneven, Requested(compile=c)).chunk for c in ("on", "off")] == [3, 6]
    assert decide(maml(), uneven, Requested(compile="on", chunk=4)).chunk == 4
