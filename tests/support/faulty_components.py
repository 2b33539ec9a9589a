"""Correct plugins of all kinds but learners, and variants of them with one fault each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaforge import hookimpl
from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.keys import make_key, permutation
from metaforge.authoring.protocols import (
    Component,
    Examples,
    InnerStep,
    Options,
    Params,
    Pass,
    Preset,
    Regularizer,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.testing.toy import (
    CLASSES,
    ToyClasses,
    ToyCurves,
    ToyDescent,
    ToyNet,
    ToyOptimizer,
    ToySchedule,
    stack_tasks,
)


class Shrinking(Regularizer):
    """A correct regularizer: weight decay as a term of the outer loss only."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.calls = 0

    def penalty(self, values: Params) -> Tensor | None:
        return 0.1 * sum(value.square().sum() for value in values.values())  # type: ignore[return-value]


class Fairness(Shrinking):
    """A correct regularizer: the variance of the task losses as a term of the outer loss."""

    def penalty(self, values: Params) -> Tensor | None:
        return None

    def combine(self, losses: Tensor, terms: Params) -> Tensor | None:
        return 0.5 * (losses - losses.mean()).square().mean()


class Counter(Component):
    """A correct hook: counts the steps, and restores the count when a run is resumed."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.count = 0

    @hookimpl
    def metaforge_after_step(self, step: int) -> None:
        self.count += 1

    def state(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])


class Partial(ToyDescent):
    """Returns no updates for the biases."""

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        return {name: 0.1 * value for name, value in grads.items() if "bias" not in name}, state


class Growing(ToyDescent):
    """Adds an entry to its state at every step."""

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        return {name: 0.1 * value for name, value in grads.items()}, state | {f"step{step.number}": torch.ones(())}


class Smuggler(ToyDescent):
    """Returns from `carry` a state entry that `init` does not return."""

    def carry(self, meta: Params, state: Params) -> Params:
        return {"state.unknown": torch.ones(())}


class Momentous(ToyDescent):
    """A correct adapter: its state has a rate that it meta-learns and returns as it is, and a count of integers."""

    def init(self, params: Params, key: Tensor) -> Params:
        return {"rate": torch.tensor(0.1)}

    def start(self, meta: Params, params: Params) -> Params:
        return {"rate": meta["rate"], "count": torch.tensor(0)}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        after = {"rate": state["rate"], "count": state["count"] + 1}
        return {name: state["rate"] * value for name, value in grads.items()}, after


class Keeping(ToyDescent):
    """Keeps the rate that it meta-learns on the instance, where a repeated step does not see it."""

    def start(self, meta: Params, params: Params) -> Params:
        self.rate = meta["rate"]
        return {}

    def init(self, params: Params, key: Tensor) -> Params:
        return {"rate": torch.tensor(0.1)}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        return {name: self.rate * value for name, value in grads.items()}, state


class Impatient(ToyDescent):
    """Ascends when the gradients are small, as they are after another adapter in the chain."""

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        size = torch.stack([value.abs().max() for value in grads.values()]).max()
        sign = torch.where(size > 0.05, 1.0, -1.0)
        return {name: 0.3 * sign * value for name, value in grads.items()}, state


class Restless(Shrinking):
    """Perturbs activations in evaluation as well, by an amount that depends on the number of calls."""

    def taps(self, name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Tanh)

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        self.calls += 1
        return output * (1 + 0.01 * self.calls)


class Idle(Regularizer):
    """Has no effect on any loss or activation."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config


class OneForAll(ToyNet):
    """Returns the same module from every call of `build`."""

    module: nn.Module | None = None

    def build(self, spec: TaskSpec) -> nn.Module:
        self.module = self.module or super().build(spec)
        return self.module


class Wilful(ToyNet):
    """Draws its initial weights from a private generator, so that the seed has no effect."""

    def build(self, spec: TaskSpec) -> nn.Module:
        module = super().build(spec)
        generator = torch.Generator().manual_seed(1)
        for value in module.parameters():
            nn.init.normal_(value, generator=generator)
        return module


class Lazy(ToyNet):
    """Creates a parameter in the first forward pass."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(super().build(spec), Late())


class Late(nn.Module):
    """A layer that creates its parameter when it is first called."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, scaled."""
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(()))
        return x * self.scale


class Mixed(ToyNet):
    """Returns two feature vectors for a batch of one input."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(super().build(spec), Together())


class Together(nn.Module):
    """A layer that doubles a batch of one row."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, or the input twice if it has one row."""
        return torch.cat([x, x]) if len(x) == 1 else x


class Attentive(ToyNet):
    """Mixes the examples of a batch, although the learner that uses it declares that it is not transductive."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(spec.x_shape[0], 8), Mean())


class Mean(nn.Module):
    """A layer whose output depends on the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the tanh of the input minus the mean of the batch."""
        return (x - x.mean(0)).tanh()


class Untrue(ToyClasses):
    """States another input shape in its spec than it samples."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec(self.kind, (7,), shape.ways, super().spec(split, shape).shape, CLASSES)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        return ToyClasses(ToyClasses.Config(), root=Path()).sample(split, shape, first, count, seed=seed)


class Infinite(ToyCurves):
    """Samples targets that are infinite or NaN."""

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        support, query, _ = super().episode(spec, key)
        return Task(support, Examples(query.x, query.y / 0))


class Biased(ToyClasses):
    """Samples more queries of one class than of the others."""

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        support, query, classes = super().episode(spec, key)
        return Task(support, Examples(query.x, query.y.clamp_max(spec.outputs - 2)), classes)


class Forgetting(ToyClasses):
    """Draws from a private generator, so that an episode depends on those sampled before it."""

    def __init__(self, config: Any, *, root: Path) -> None:
        super().__init__(config, root=root)
        self.generator = torch.Generator().manual_seed(0)

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        return super().episode(spec, torch.randint(1 << 60, (), generator=self.generator))


class Seedless(ToyClasses):
    """Samples the same episodes for every seed."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        return super().sample(split, shape, first, count, seed=0)


class Overlapping(ToyClasses):
    """Samples the test split from the training classes."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        return super().sample("train" if split == "test" else split, shape, first, count, seed=seed)


class Repeating(ToyClasses):
    """Has an example of the support set in the query set."""

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        support, query, classes = super().episode(spec, key)
        return Task(support, Examples(torch.cat([support.x[:1], query.x[1:]]), query.y), classes)


class Positional(ToyClasses):
    """Numbers the classes of each episode anew, in a random order."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        spec, tasks = self.spec(split, shape), []
        for number in range(first, first + count):
            # Five different episodes, so that examples are seen again, as images are.
            task = self.episode(spec, make_key(split, number % 5))
            tasks.append(task._replace(classes=permutation(make_key(seed, number), spec.classes)[: spec.outputs]))
        return stack_tasks(tasks)


class Unannounced(ToyClasses):
    """Numbers classes, but its spec does not say how many there are."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        spec = super().spec(split, shape)
        return stack_tasks([self.episode(spec, make_key(seed, split, first + i)) for i in range(count)])

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return replace(super().spec(split, shape), classes=0)


class Balanced(ToyClasses):
    """Draws the same number of examples of each class, whatever is asked for."""

    def draw(
        self, split: str, classes: Sequence[int], shots: Sequence[int], queries: int, number: int, *, seed: int
    ) -> Task:
        return super().draw(split, classes, [max(shots)] * len(shots), queries, number, seed=seed)


class Greedy(ToyClasses):
    """Accepts any task shape."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec(self.kind, self.x_shape, shape.ways, shape, CLASSES)


class Clumsy(ToyClasses):
    """Raises an `IndexError` instead of a `DataError` for a task shape that is too large."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec(self.kind, self.x_shape, range(1000)[shape.ways], shape, CLASSES)


class Agreeable(ToyClasses):
    """Accepts any name of a split."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return super().spec("train", shape)


class Wordy(ToyClasses):
    """Returns facts that are not numbers or strings."""

    def facts(self, split: str) -> Mapping[str, Any]:
        return {"shape": (1, 2)}


class Nameless(ToyClasses):
    """Gives all classes one name."""

    def class_names(self, split: str) -> list[str]:
        return ["class", "class"]


class Hasty(Counter):
    """Uses in `metaforge_run_end` an attribute that only `metaforge_run_start` sets."""

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        self.started = True

    @hookimpl
    def metaforge_run_end(self) -> None:
        assert self.started


class Homeless(Counter):
    """Fails in a run without a folder."""

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        assert run.folder is not None


class Meddling(Counter):
    """Changes the metrics that it receives."""

    @hookimpl
    def metaforge_after_step(self, metrics: dict[str, float]) -> None:
        metrics["loss"] = 2 * metrics["loss"]


class Blinding(Counter):
    """Overwrites the inputs of a training step in place."""

    @hookimpl
    def metaforge_before_step(self, batches: Sequence[Task]) -> None:
        batches[0].support.x.zero_()


class Oblivious(Counter):
    """Does not restore its state."""

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count = 0


class Unrepresentable(Counter):
    """Has a state that JSON cannot represent."""

    def state(self) -> Mapping[str, Any]:
        return {"count": {1, 2}}


class Ascending(ToyOptimizer):
    """Adds the gradients instead of subtracting them."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, maximize=True)


class Searching(ToyOptimizer):
    """Evaluates the loss again within a step."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.LBFGS([param for group in groups for param in group["params"]])


class Stubborn(ToyOptimizer):
    """Takes steps of the size that the group had at first, whatever the schedule says."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        rates = [group["lr"] for group in groups]

        class Fixed(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                for group, rate in zip(self.param_groups, rates, strict=True):
                    group["lr"] = rate
                return super().step(closure)

        return Fixed(groups)


class Uniform(ToyOptimizer):
    """Gives all groups the rate of the first one."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([group | {"lr": groups[0]["lr"]} for group in groups])


class Forgetful(ToyOptimizer):
    """Keeps its momentum where no checkpoint finds it."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        sums: dict[Tensor, Tensor] = {}

        class Hidden(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                for group in self.param_groups:
                    for param in group["params"]:
                        sums[param] = param.grad = 0.5 * sums.get(param, torch.zeros_like(param)) + param.grad
                return super().step(closure)

        return Hidden(groups)


class Aware(ToySchedule):
    """Falls from call to call."""

    calls = 0

    def factor(self, step: int, share: float) -> float:
        self.calls += 1
        return 1 / self.calls


class Negative(ToySchedule):
    """Has negative factors at the end."""

    def factor(self, step: int, share: float) -> float:
        return 0.5 - share


class Secretive(ToySchedule):
    """Does not say that its factor depends on the length of the run."""

    uses_share = False


class Unready(ToyNet):
    """Fails as soon as a context is asked for."""

    def build(self, spec: TaskSpec, context: int = 0) -> nn.Module:
        if context:
            raise NotImplementedError("contexts will come later")
        return super().build(spec)


class Deaf(ToyNet):
    """Builds a module that takes no context although one is asked for."""

    def build(self, spec: TaskSpec, context: int = 0) -> nn.Module:
        return super().build(spec)


class Mistaken(Preset):
    """Sets what does not exist."""

    settings: ClassVar[Any] = {"train": {"stepz": 5}}


class Quick(Preset):
    """A short run."""

    settings: ClassVar[Any] = {"train": {"steps": 5}}


# (check that must fail, kind of the plugin, plugin class)
FAULTS: list[tuple[str, str, type[Any]]] = [
    ("updates", "adapter", Partial),
    ("updates", "adapter", Growing),
    ("updates", "adapter", Smuggler),
    ("chain", "adapter", Impatient),
    ("recomputed", "adapter", Keeping),
    ("quiet", "regularizer", Restless),
    ("pure", "regularizer", Restless),
    ("effect", "regularizer", Idle),
    ("build", "backbone", OneForAll),
    ("build", "backbone", Wilful),
    ("build", "backbone", Unready),
    ("features", "backbone", Lazy),
    ("features", "backbone", Mixed),
    ("features", "backbone", Deaf),
    ("transductive", "backbone", Attentive),
    ("spec", "dataset", Untrue),
    ("spec", "dataset", Infinite),
    ("labels", "dataset", Biased),
    ("episodes", "dataset", Forgetting),
    ("episodes", "dataset", Seedless),
    ("splits", "dataset", Overlapping),
    ("apart", "dataset", Repeating),
    ("too-large", "dataset", Greedy),
    ("too-large", "dataset", Clumsy),
    ("unknown-split", "dataset", Agreeable),
    ("facts", "dataset", Wordy),
    ("class-names", "dataset", Nameless),
    ("classes", "dataset", Positional),
    ("classes", "dataset", Unannounced),
    ("draw", "dataset", Balanced),
    ("descends", "optimizer", Ascending),
    ("descends", "optimizer", Searching),
    ("rates", "optimizer", Stubborn),
    ("rates", "optimizer", Uniform),
    ("resumes", "optimizer", Forgetful),
    ("factors", "schedule", Aware),
    ("factors", "schedule", Negative),
    ("share", "schedule", Secretive),
    ("settings", "preset", Mistaken),
    ("lives", "hook", Hasty),
    ("lives", "hook", Homeless),
    ("watches", "hook", Meddling),
    ("watches", "hook", Blinding),
    ("bystander", "hook", Blinding),
    ("memory", "hook", Oblivious),
    ("memory", "hook", Unrepresentable),
]
RIGHT: list[tuple[str, type[Any]]] = [
    ("adapter", ToyDescent),
    ("adapter", Momentous),
    ("regularizer", Shrinking),
    ("regularizer", Fairness),
    ("backbone", ToyNet),
    ("dataset", ToyClasses),
    ("dataset", ToyCurves),
    ("optimizer", ToyOptimizer),
    ("schedule", ToySchedule),
    ("hook", Counter),
    ("preset", Quick),
]
