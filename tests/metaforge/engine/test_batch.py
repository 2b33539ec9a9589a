"""The engine: every plan, chunk and order of transforms gives the one meta-gradient, and evaluation changes nothing."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import one_task, split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Examples, Options, Params, Parts, Regularizer, Task, TaskShape, TaskSpec
from metaforge.engine.batch import meta_gradients, prepare, score_tasks
from metaforge.engine.compiler import Compiler
from metaforge.engine.plans import choose_chunk, choose_compile, choose_plan, choose_threads, even_chunk, fused_norms
from metaforge.engine.precision import rounding
from metaforge.errors import ConfigError
from metaforge.system import machine
from metaforge_plugins.learners.amortised.cnp import CNP
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.metric.protonet import ProtoNet
from toys import (
    POLICIES,
    assert_equal_steps,
    assert_true_gradient,
    fresh,
    keys,
    learner,
    sgd,
    smooth,
    step,
    task,
    tasks,
)


class Inequality(Regularizer):
    """Adds the variance of the task losses."""

    Config = Options

    def __init__(self, config: Options) -> None:
        pass

    def combine(self, losses: Tensor) -> Tensor:
        return losses.var(unbiased=False)


class Shrinkage(Regularizer):
    """Adds half the sum of squared weights of one layer."""

    Config = Options

    def __init__(self, config: Options) -> None:
        pass

    def penalty(self, values: Params) -> Tensor:
        return 0.5 * values["model.0.0.weight"].square().sum()


def maml(norm: str = "transductive", **options: Any) -> Any:
    """Return MAML on a network with batch norm, three inner steps that move the norm's scale too."""
    return learner(MAML, backbone=smooth("batch"), steps=3, norm=norm, adapt="all", **options)


def mean_loss(built: Any, values: Params, batch: Task) -> Any:
    """Return the mean task loss as a function of the parameters, by a plain loop."""
    state = split_state(values)[1]

    def losses(params: Params) -> Tensor:
        count = len(batch.support.x)
        singles = [tree_map(lambda t, i=i: t[i], batch) for i in range(count)]
        return torch.stack([built.loss(params | state, one, k)[0] for one, k in zip(singles, keys(count), strict=True)])

    return losses


@pytest.mark.parametrize("norm", POLICIES)
def test_second_order_through_norm_scales_is_exact_under_every_plan(norm: str) -> None:
    built = maml(norm)
    values, batch = fresh(built), tasks(3)
    looped = step(built, values, batch)
    params = split_state(values)[0]
    losses = mean_loss(built, values, batch)
    assert_true_gradient(lambda p: losses(p).mean(), params, looped.grads)
    # `fold` is grad(vmap), the order in which native norms go wrong.
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 9])
def test_chunks_agree(plan: str, chunk: int) -> None:
    built = learner(ProtoNet, backbone=smooth("batch"))
    values, batch = fresh(built), tasks(5)
    whole = step(built, values, batch, "loop")
    assert_equal_steps(step(built, values, batch, plan, chunk=chunk), whole)
    assert whole.losses.shape == (5,)
    assert set(whole.state) == {"state.model.1.mean", "state.model.1.var"}


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_terms_of_the_batch_and_of_the_parameters(plan: str, chunk: int | None) -> None:
    built = maml()
    values, batch = fresh(built), tasks(3)
    terms = (Inequality(Options()), Shrinkage(Options()))
    losses = mean_loss(built, values, batch)

    def total(params: Params) -> Tensor:
        each = losses(params)
        return each.mean() + each.var(unbiased=False) + 0.5 * params["model.0.0.weight"].square().sum()

    found = step(built, values, batch, plan, chunk=chunk, regularizers=terms)
    exact = torch.func.grad(total)(split_state(values)[0])
    for name, gradient in exact.items():
        torch.testing.assert_close(found.grads[name], gradient, rtol=1e-9, atol=1e-9)
    if plan == "loop" and chunk is None:
        assert_true_gradient(total, split_state(values)[0], found.grads)


def test_a_penalty_alone_and_regularizers_without_terms() -> None:
    built = maml()
    values, batch = fresh(built), tasks(2)
    plain = step(built, values, batch)
    shrunk = step(built, values, batch, regularizers=(Shrinkage(Options()),))
    difference = shrunk.grads["model.0.0.weight"] - plain.grads["model.0.0.weight"]
    torch.testing.assert_close(difference, values["model.0.0.weight"])
    torch.testing.assert_close(shrunk.grads["model.0.0.bias"], plain.grads["model.0.0.bias"], rtol=0, atol=0)

    class Idle(Shrinkage):
        def penalty(self, values: Params) -> None:  # type: ignore[override]
            return None

    assert_equal_steps(step(built, values, batch, regularizers=(Idle(Options()),)), plain, 0.0)


def test_state_has_no_gradient_and_gradients_no_graph() -> None:
    built = maml("running")
    values = {name: value.requires_grad_() for name, value in fresh(built).items()}
    found = step(built, values, tasks(2))
    assert not any(name.startswith("state.") for name in found.grads)
    assert all(name.startswith("state.") for name in found.state)


def test_the_state_of_several_tasks_is_averaged() -> None:
    built = learner(ProtoNet, backbone=smooth("batch"), norm="running")
    values, batch = fresh(built), tasks(3)
    singles = [step(built, values, tree_map(lambda t, i=i: t[i : i + 1], batch)) for i in range(3)]
    whole = step(built, values, batch, "fold", chunk=2)
    for name, change in whole.state.items():
        torch.testing.assert_close(change, torch.stack([one.state[name] for one in singles]).mean(0))


def test_prepare_scales_bytes_and_keeps_labels() -> None:
    pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    batch = Task(Examples(pixels, torch.tensor([1])), Examples(torch.ones(1, 3), torch.ones(1, 1)))
    ready = prepare(batch, torch.device("cpu"), torch.float64)
    assert ready.support.x.tolist() == [[0.0, 0.2, 1.0]]
    assert ready.support.x.dtype == ready.query.x.dtype == ready.query.y.dtype == torch.float64
    assert ready.support.y.dtype == torch.int64
    assert pixels.dtype == torch.uint8


def test_plans_are_chosen_by_what_a_learner_does() -> None:
    gradient, metric = maml(), learner(ProtoNet)
    for built in (gradient, metric):
        assert choose_plan(built, "auto") == "fold"
        assert [choose_plan(built, plan) for plan in ("loop", "vmap", "fold")] == ["loop", "vmap", "fold"]
    assert choose_plan(gradient, "auto", ["layer_norm"]) == "vmap"
    assert choose_plan(metric, "auto", ["layer_norm"]) == "fold"


@pytest.mark.parametrize("plan", ["loop", "vmap"])
@pytest.mark.parametrize("norm", POLICIES)
def test_evaluation_changes_nothing_and_its_plans_agree(norm: str, plan: str) -> None:
    built = maml(norm)
    values, batch = fresh(built), tasks(4)
    before, generator = {n: v.clone() for n, v in values.items()}, torch.random.get_rng_state()
    found = score_tasks(built, values, batch, plan=plan)  # type: ignore[arg-type]
    assert found.scores.shape == (4,)
    assert found.predictions.shape == (4, 9, 3)
    assert not found.predictions.requires_grad
    assert values.keys() == before.keys()
    assert all(torch.equal(value, values[name]) for name, value in before.items())
    assert torch.equal(generator, torch.random.get_rng_state())
    again = score_tasks(built, values, batch, plan="loop")
    torch.testing.assert_close(found.predictions, again.predictions, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.scores, (found.predictions.argmax(-1) == batch.query.y).double().mean(-1))


def test_attention_is_exact_under_every_plan() -> None:
    def backbone() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), nn.TransformerEncoderLayer(4, 2, 6, 0.0))

    built = learner(MAML, backbone=backbone, steps=2, adapt="all")
    values, batch = fresh(built), tasks(2)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
        assert_equal_steps(step(built, values, batch, plan, chunk=1), looped)
    found = [score_tasks(built, values, batch, plan=plan).predictions for plan in ("loop", "vmap")]  # type: ignore[arg-type]
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert torch.backends.mha.get_fastpath_enabled()


def test_evaluation_counts_steps_and_takes_measures() -> None:
    built = maml()
    values, batch = fresh(built), tasks(2)
    zero, three = (score_tasks(built, values, batch, steps=n).predictions for n in (0, 3))
    assert not torch.allclose(zero, three)
    torch.testing.assert_close(zero[0], built.predict(values, {}, batch.query.x[0]))
    process = learner(CNP, kind="regression")
    measured = fresh(process)
    waves = tasks(2, "regression")
    assert score_tasks(process, measured, waves, keys(2)).measures == {}
    for plan in ("loop", "vmap"):
        found = score_tasks(process, measured, waves, keys(2), plan=plan, measure=True)  # type: ignore[arg-type]
        assert found.measures["log_likelihood"].shape == (2,)
        torch.testing.assert_close(found.scores, (found.predictions - waves.query.y).square().mean((1, 2)))


def test_one_task_of_a_batch_is_that_task_alone() -> None:
    built = maml()
    values = fresh(built)
    alone = built.loss(values, task(1), keys(2)[1])[0]
    torch.testing.assert_close(step(built, values, tasks(2)).losses[1], alone)
    with pytest.raises(KeyError):
        meta_gradients(built, {"model.0.0.weight": torch.ones(1)}, tasks(1), make_key(0).unsqueeze(0))


@pytest.mark.parametrize(
    ("queries", "training", "chunk"),
    # 23,520 and 62,720 numbers in a task: a batch of 16 stays whole with 5 queries and is divided with 15.
    [(5, True, 22), (15, True, 8), (5, False, 11), (15, False, 4)],
)
def test_the_size_of_a_task_decides_how_many_are_computed_together(queries: int, training: bool, chunk: int) -> None:
    images = TaskSpec("classification", (1, 28, 28), 5, TaskShape(5, 1, queries))
    cpu = torch.device("cpu")
    assert choose_chunk(images, cpu, None, training=training) == chunk
    assert choose_chunk(images, cpu, 3, training=training) == 3
    huge = TaskSpec("classification", (3, 800, 800), 5, TaskShape(5, 1, queries))
    assert choose_chunk(huge, cpu, None, training=training) == 1
    small = TaskSpec("regression", (1,), 1, TaskShape(1, 5, queries))
    assert choose_chunk(small, cpu, None, training=training) >= 100


def images(count: int) -> Task:
    """Return tasks of small images `[count, n, 2, 6, 6]`."""
    draw = torch.Generator().manual_seed(5)

    def examples(each: int) -> Examples:
        y = torch.arange(3).repeat_interleave(each).expand(count, -1)
        return Examples(torch.randn(count, 3 * each, 2, 6, 6, generator=draw, dtype=torch.float64), y)

    return Task(examples(1), examples(2))


class Convolutional(nn.Module):
    """A smooth network of one convolution, a norm and, if asked for, pooling and dropout."""

    def __init__(self, norm: nn.Module, dropout: float = 0.0, *, pool: bool = False, **options: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, **options), norm, nn.Tanh(), nn.Dropout(dropout))
        if pool:
            self.layers.append(nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x).flatten(1)
        return features


class Fused(Convolutional):
    """The same with a norm that is called as a function, which no exchange of layers can see."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(super().forward(x), (64,), self.layers[1].weight.repeat(16))


CONVOLUTIONS: dict[str, Any] = {
    "batch norm": lambda: Convolutional(nn.BatchNorm2d(4)),
    "layer norm": lambda: Convolutional(nn.LayerNorm([4, 4, 4])),
    "instance norm": lambda: Convolutional(nn.InstanceNorm2d(4, affine=True)),
    "group norm": lambda: Convolutional(nn.GroupNorm(2, 4)),
    "dropout": lambda: Convolutional(nn.BatchNorm2d(4), dropout=0.4),
    "groups": lambda: Convolutional(nn.BatchNorm2d(4), groups=2),
    "dilation": lambda: Convolutional(nn.BatchNorm2d(4), dilation=2),
    "strides and padding": lambda: Convolutional(nn.BatchNorm2d(4), stride=2, padding=1),
}


def pooling() -> nn.Module:
    return Convolutional(nn.BatchNorm2d(4), dropout=0.4, groups=2, pool=True)


class Viewed(nn.Module):
    """A network that asks for a view of its features, as its author would of a batch of one task."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(x.size(0), -1)


class Flipped(Viewed):
    """A network that looks at an image twice, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        views = torch.stack([x, x.flip(-1)])
        return torch.vmap(self.body)(views).mean(0).flatten(1)


def wide() -> nn.Module:
    """Return a network whose shared weights are more than what they are applied to."""
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 30, 1), nn.Flatten())


def convolving(backbone: Any, learning: Any = MAML, **options: Any) -> Any:
    parts = Parts(TaskSpec("classification", (2, 6, 6), 3, TaskShape(3, 1, 2)), backbone, sgd(0.2), {})
    if learning is MAML:
        options = {"steps": 2, "adapt": "all", **options}
    return learning(learning.Config(**options), parts)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_plan_is_exact_on_convolutions(name: str) -> None:
    built = convolving(CONVOLUTIONS[name])
    values, batch = fresh(built), images(3)
    looped = step(built, values, batch)
    assert_true_gradient(lambda p: mean_loss(built, values, batch)(p).mean(), split_state(values)[0], looped.grads)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)


# Its largest entries change places, so finite differences say nothing: the reference is torch's own layers, in a loop.
@pytest.mark.parametrize("learning", [MAML, ProtoNet])
@pytest.mark.parametrize("backbone", [pooling, Viewed, Flipped, wide])
def test_every_plan_agrees_on_a_network_that_pools(backbone: Any, learning: Any) -> None:
    built = convolving(backbone, learning)
    values, batch = fresh(built), images(3)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
    one, two = score_tasks(built, values, batch), score_tasks(built, values, batch, plan="vmap")
    torch.testing.assert_close(one.predictions, two.predictions, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_products_are_rounded_under_every_plan(plan: str) -> None:
    built = convolving(pooling)
    values = {name: value.float() for name, value in fresh(built).items()}
    batch = tree_map(lambda t: t.float() if t.is_floating_point() else t, images(3))
    exact = step(built, values, batch, plan)
    with rounding(torch.device("cpu"), "bfloat16", tf32=False):
        rounded = step(built, values, batch, plan)
    assert not torch.equal(rounded.losses, exact.losses)
    torch.testing.assert_close(rounded.losses, exact.losses, rtol=0.1, atol=0.1)


def test_a_fused_norm_is_found_and_keeps_a_learner_that_adapts_from_folding() -> None:
    built = convolving(lambda: Fused(nn.BatchNorm2d(4)))
    values, batch = fresh(built), images(3)
    found = fused_norms(built, values, one_task(batch), keys(1)[0])
    assert found == ["layer_norm"]
    assert choose_plan(built, "auto", found) == "vmap"
    with pytest.raises(ConfigError, match="'fold' gives wrong meta-gradients with layer_norm"):
        choose_plan(built, "fold", found)
    looped, folded = step(built, values, batch), step(built, values, batch, "fold")
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    # The reason for all this: without a word, the other order is wrong.
    wrong = {name: float((folded.grads[name] - looped.grads[name]).norm()) for name in looped.grads}
    assert max(wrong.values()) > 1e-6
    assert fused_norms(maml(), fresh(maml()), task(), keys(1)[0]) == []


@pytest.mark.parametrize("backbone", [CONVOLUTIONS["dropout"], pooling])
@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_steps_done_again_give_the_same_gradient(plan: str, backbone: Any) -> None:
    kept, again = (convolving(backbone, norm="per-step", recompute=flag) for flag in (False, True))
    values, batch = fresh(kept), images(3)
    assert_equal_steps(step(again, values, batch, plan), step(kept, values, batch, plan), 1e-12)


# What is compiled, how many tasks there are in chunks of two, and how often it is compiled: once more for a chunk of
# another size, not for another batch.
COMPILED: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "inner loop": (lambda: learner(MAML, steps=1, backbone=smooth(units=2)), (2, 4), 1),
    "noise, state and a rest": (lambda: learner(ProtoNet, backbone=noisy), (3,), 2),
}


def noisy() -> nn.Module:
    return nn.Sequential(smooth("batch", units=2)(), nn.Dropout(0.4))


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_step_is_the_same_step(name: str) -> None:
    made, counts, compilations = COMPILED[name]
    built, call = made(), Compiler()
    values = fresh(built)
    for count in counts:
        plain = step(built, values, tasks(count), "fold", chunk=2)
        assert_equal_steps(step(built, values, tasks(count), "fold", chunk=2, call=call), plain)
    assert len(call._made) == compilations


def peak(
    cls: type[Any],
    steps: int,
    *,
    adapt_only: bool = False,
    plan: str = "fold",
    count: int = 2,
    chunk: int | None = 2,
    **options: Any,
) -> int:
    """Return how many bytes of tensors were added at most while a meta-gradient was taken, or tasks evaluated."""
    parts = Parts(TaskSpec("classification", (2, 6, 6), 3, TaskShape(3, 1, 2)), CONVOLUTIONS["batch norm"], sgd(0.2))
    built = cls(cls.Config(steps=steps, test_steps=steps, **options), parts)
    values, batch = fresh(built), images(count)
    if adapt_only:
        return most_added(lambda: score_tasks(built, values, batch, plan="vmap"))
    return most_added(lambda: step(built, values, batch, plan, chunk=chunk))


def most_added(call: Callable[[], Any]) -> int:
    """Return how many bytes of tensors were added at most during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watch:
        call()
    events = [one for one in watch.profiler.kineto_results.events() if one.name() == "[memory]"]  # type: ignore[union-attr]
    sizes = itertools.accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns()))
    return max(sizes)


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_steps_done_again_need_the_memory_of_few_under_every_plan(plan: str) -> None:
    batch = tasks(2, shots=60)
    found = []
    for steps in (5, 50):
        built = learner(MAML, backbone=smooth("batch"), steps=steps, recompute=True)
        found.append(most_added(lambda built=built: step(built, fresh(built), batch, plan, chunk=2)))  # type: ignore[misc]
    assert found[1] < 1.5 * found[0]


def test_a_loop_needs_the_memory_of_one_task() -> None:
    assert peak(MAML, 4, plan="loop", count=8, chunk=None) < 1.2 * peak(MAML, 4, plan="loop", count=1)


def test_memory_does_not_grow_where_it_need_not() -> None:
    # Second order keeps every inner step, unless they are done again: then it keeps the weights of each alone.
    assert peak(MAML, 20) > 3 * peak(MAML, 4)
    assert peak(MAML, 20, recompute=True) < 0.4 * peak(MAML, 20)
    # No graph of the inner steps is built for first order, nor in evaluation.
    assert peak(FOMAML, 20) < 1.1 * peak(FOMAML, 4)
    assert peak(MAML, 20, adapt_only=True) < 1.1 * peak(MAML, 4, adapt_only=True)
    # Chunks bound what a batch needs.
    assert peak(MAML, 4, count=16) < 1.5 * peak(MAML, 4, count=2)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the size of the process in /proc")
def test_memory_stays_as_it_is_over_two_thousand_steps_and_evaluations() -> None:
    built = learner(MAML, backbone=smooth())
    values, batch, sizes = fresh(built), tasks(1), []
    for number in range(2000):
        step(built, values, batch, "fold")
        score_tasks(built, values, batch, plan="vmap")
        if number in (200, 1999):
            gc.collect()
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert sizes[1] < 1.01 * sizes[0]


@pytest.mark.parametrize(
    ("most", "groups", "size"),
    [(22, (25,), 22), (12, (25,), 12), (13, (24,), 12), (5, (5, 5), 5), (2, (1, 2, 2), 1), (8, (16,), 8)],
)
def test_a_compiled_step_has_chunks_of_one_size_where_that_costs_little(
    most: int, groups: tuple[int, ...], size: int
) -> None:
    assert even_chunk(most, groups) == size


def test_threads_and_compilation_are_chosen_by_size_and_length() -> None:
    cpu = torch.device("cpu")
    small = TaskSpec("regression", (1,), 1, TaskShape(1, 10, 10))
    large = TaskSpec("classification", (1, 28, 28), 5, TaskShape(5, 1, 15))
    assert choose_threads(None, small, 25) == 1
    assert choose_threads(None, large, 4) is None
    assert choose_threads(3, small, 25) == 3
    assert choose_compile("auto", small, cpu, tasks=25, steps=10_000) == machine.has_compiler()
    assert not choose_compile("auto", small, cpu, tasks=25, steps=100)
    assert not choose_compile("auto", small, cpu, tasks=25, steps=10_000, budget=30)
    assert not choose_compile("auto", large, cpu, tasks=25, steps=10_000)
    assert [choose_compile(asked, large, cpu, tasks=25, steps=100) for asked in ("on", "off")] == [True, False]
