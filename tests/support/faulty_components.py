"""Adapters, regularizers, backbones, data sets and hooks with one fault each, made from right ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaforge import hookimpl
from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.protocols import (
    Component,
    Examples,
    Options,
    Params,
    Pass,
    Regularizer,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.testing.toy import ToyClasses, ToyCurves, ToyDescent, ToyNet


class Shrinking(Regularizer):
    """A right regularizer: weight decay as a term of the outer loss alone."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.calls = 0

    def penalty(self, values: Params) -> Tensor | None:
        return 0.1 * sum(value.square().sum() for value in values.values())  # type: ignore[return-value]


class Fairness(Shrinking):
    """A right regularizer: the spread of the task losses as a term of the outer loss."""

    def penalty(self, values: Params) -> Tensor | None:
        return None

    def combine(self, losses: Tensor) -> Tensor | None:
        return 0.5 * (losses - losses.mean()).square().mean()


class Counter(Component):
    """A right hook: counts steps, and remembers the count over a resume."""

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
    """Leaves the biases out of its answer."""

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        return {name: 0.1 * value for name, value in grads.items() if "bias" not in name}, state


class Growing(ToyDescent):
    """Adds an entry to its state at every step."""

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        return {name: 0.1 * value for name, value in grads.items()}, state | {f"step{step}": torch.ones(())}


class Smuggler(ToyDescent):
    """Carries a state that `init` does not give."""

    def carry(self, meta: Params, state: Params) -> Params:
        return {"state.stranger": torch.ones(())}


class Impatient(ToyDescent):
    """Climbs where gradients are small, which they are after another adapter."""

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        size = torch.stack([value.abs().max() for value in grads.values()]).max()
        sign = torch.where(size > 0.05, 1.0, -1.0)
        return {name: 0.3 * sign * value for name, value in grads.items()}, state


class Restless(Shrinking):
    """Perturbs activations in evaluation too, from a count of its own."""

    def taps(self, name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Tanh)

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        self.calls += 1
        return output * (1 + 0.01 * self.calls)


class Idle(Regularizer):
    """Does nothing at all."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config


class OneForAll(ToyNet):
    """Hands out the same module again and again."""

    made: nn.Module | None = None

    def build(self, spec: TaskSpec) -> nn.Module:
        self.made = self.made or super().build(spec)
        return self.made


class Wilful(ToyNet):
    """Draws its weights from a generator of its own, which no seed reaches."""

    def build(self, spec: TaskSpec) -> nn.Module:
        module = super().build(spec)
        generator = torch.Generator().manual_seed(1)
        for value in module.parameters():
            nn.init.normal_(value, generator=generator)
        return module


class Lazy(ToyNet):
    """Makes its weights at the first pass."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(super().build(spec), Late())


class Late(nn.Module):
    """A layer that adds its parameter when it is first used."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, scaled."""
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(()))
        return x * self.scale


class Mixed(ToyNet):
    """Gives one feature vector of all inputs together."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(super().build(spec), Together())


class Together(nn.Module):
    """A layer that gives more rows than it gets, where it gets one."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, twice where it is one row."""
        return torch.cat([x, x]) if len(x) == 1 else x


class Attentive(ToyNet):
    """Mixes the examples of a batch without saying so: the learner around it believes them to be apart."""

    def build(self, spec: TaskSpec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(spec.x_shape[0], 8), Mean())


class Mean(nn.Module):
    """A layer that looks at the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input less the mean of the batch."""
        return (x - x.mean(0)).tanh()


class Untrue(ToyClasses):
    """Promises inputs of another shape than it gives."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec(self.kind, (7,), shape.ways, super().spec(split, shape).shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        return ToyClasses(ToyClasses.Config(), root=Path()).sample(split, shape, first, count, seed=seed)


class Infinite(ToyCurves):
    """Has targets that are not finite."""

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        support, query = super().episode(spec, key)
        return Task(support, Examples(query.x, query.y / 0))


class Biased(ToyClasses):
    """Has one class more often than the others."""

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        support, query = super().episode(spec, key)
        return Task(support, Examples(query.x, query.y.clamp_max(spec.outputs - 2)))


class Forgetting(ToyClasses):
    """Draws from a generator of its own, so that an episode depends on those before it."""

    def __init__(self, config: Any, *, root: Path) -> None:
        super().__init__(config, root=root)
        self.generator = torch.Generator().manual_seed(0)

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        return super().episode(spec, torch.randint(1 << 60, (), generator=self.generator))


class Seedless(ToyClasses):
    """Gives the same episodes under every seed."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        return super().sample(split, shape, first, count, seed=0)


class Overlapping(ToyClasses):
    """Tests on what it trains on."""

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        return super().sample("train" if split == "test" else split, shape, first, count, seed=seed)


class Repeating(ToyClasses):
    """Asks for an example of the support set."""

    def episode(self, spec: TaskSpec, key: Tensor) -> Task:
        support, query = super().episode(spec, key)
        return Task(support, Examples(torch.cat([support.x[:1], query.x[1:]]), query.y))


class Greedy(ToyClasses):
    """Accepts any shape."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec(self.kind, self.x_shape, shape.ways, shape)


class Clumsy(ToyClasses):
    """Fails on a shape that is too large with whatever comes first."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec(self.kind, self.x_shape, range(1000)[shape.ways], shape)


class Agreeable(ToyClasses):
    """Has every split that it is asked for."""

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return super().spec("train", shape)


class Wordy(ToyClasses):
    """Tells facts that are no plain values."""

    def facts(self, split: str) -> Mapping[str, Any]:
        return {"shape": (1, 2)}


class Hasty(Counter):
    """Ends what it never began."""

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        self.begun = True

    @hookimpl
    def metaforge_run_end(self) -> None:
        assert self.begun


class Homeless(Counter):
    """Takes for granted that every run has a folder."""

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        assert run.folder is not None


class Meddling(Counter):
    """Multiplies the metrics that it is shown."""

    @hookimpl
    def metaforge_after_step(self, metrics: dict[str, float]) -> None:
        metrics["loss"] = 2 * metrics["loss"]


class Blinding(Counter):
    """Wipes the tasks from which a step is to learn."""

    @hookimpl
    def metaforge_before_step(self, tasks: Task) -> None:
        tasks.support.x.zero_()


class Oblivious(Counter):
    """Takes up nothing of what it remembered."""

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count = 0


class Unrepresentable(Counter):
    """Has a state that JSON cannot represent."""

    def state(self) -> Mapping[str, Any]:
        return {"count": {1, 2}}


# Check, kind, plugin.
FAULTS: list[tuple[str, str, type[Any]]] = [
    ("updates", "adapter", Partial),
    ("updates", "adapter", Growing),
    ("updates", "adapter", Smuggler),
    ("chain", "adapter", Impatient),
    ("quiet", "regularizer", Restless),
    ("pure", "regularizer", Restless),
    ("effect", "regularizer", Idle),
    ("build", "backbone", OneForAll),
    ("build", "backbone", Wilful),
    ("features", "backbone", Lazy),
    ("features", "backbone", Mixed),
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
    ("regularizer", Shrinking),
    ("regularizer", Fairness),
    ("backbone", ToyNet),
    ("dataset", ToyClasses),
    ("dataset", ToyCurves),
    ("hook", Counter),
]
