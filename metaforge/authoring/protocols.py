"""The contracts: what a task is, and what a learner, adapter, regularizer, backbone and data set must offer.

A learner sees ONE task and is a pure function of (values, task, key); the engine alone knows of batches of tasks.

**Values.** Everything a learner learns or carries is one flat dictionary of tensors with dotted names. A name that
begins with `state.` is *state* (running statistics, say): it is saved and handed to every call, never differentiated; a
learner returns what to add to it in `Aux.state`. Every other entry is a parameter of the outer optimiser. What
adaptation makes for a task (`Fast`) may be laid over the values with `values | fast`.

**Keys.** Randomness is an argument: a key is an int64 scalar tensor, see `metaforge.authoring.keys`. `key=None` means
evaluation: no statistics are collected and no noise is drawn (a regularizer whose method needs noise in evaluation
draws it from a key that it documents).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from metaforge.authoring import protocols

Params = dict[str, Tensor]
Key = Tensor
Fast = Any
Kind = Literal["classification", "regression"]
BatchNormPolicy = Literal["transductive", "support", "running"]
NormPolicy = Literal["transductive", "support", "running", "per-step"]

STATE = "state."


class Examples(NamedTuple):
    """Inputs `x` `[n, ...]` with targets `y`: `[n]` int64 class indices, or `[n, outputs]` floats in regression."""

    x: Tensor
    y: Tensor


class Task(NamedTuple):
    """One few-shot task; a batch of tasks is the same type with a leading axis on every tensor."""

    support: Examples
    query: Examples


class TaskShape(NamedTuple):
    """How large a task is: `ways` classes (1 in regression), `shots` support and `queries` query examples per class."""

    ways: int
    shots: int
    queries: int


@dataclass(frozen=True)
class TaskSpec:
    """What a learner must know of its tasks before it sees one.

    `x_shape` is the shape of one input, `outputs` the number of classes or of target dimensions.
    """

    kind: Kind
    x_shape: tuple[int, ...]
    outputs: int
    shape: TaskShape


class Pass(NamedTuple):
    """Where in a task a forward pass stands: key, inner step, whether it sees support or query, and which draw."""

    key: Key | None = None
    step: int = 0
    role: Literal["support", "query"] = "query"
    draw: int = 0


class Aux(NamedTuple):
    """What a loss returns beside its value: figures for people (scalars), and what to add to the `state.` entries."""

    metrics: Params
    state: Params = {}


class Options(BaseModel):
    """Base of every plugin's `Config`: an unknown option is refused, a value cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Tags:
    """Static facts of a learner, from which commands and conformance checks follow.

    `kinds` of tasks it solves; the components it `needs` (`backbone`, `adapter`); whether it `adapts` in steps that can
    be counted; whether its number of outputs is fixed at construction; whether its loss draws noise; whether the
    gradient of its loss is that of the loss's value, as it is not where a method leaves terms of it out.
    """

    kinds: frozenset[Kind] = frozenset({"classification"})
    needs: frozenset[Literal["backbone", "adapter"]] = frozenset()
    adapts: bool = False
    fixed_ways: bool = True
    stochastic: bool = False
    exact_meta_gradient: bool = True


class Component(Protocol):
    """What every plugin has: a docstring (its first line is the summary), a `Config` and the paper it follows.

    `defaults` are settings that suit the plugin, by kind of task: a layer of the run's configuration between
    MetaForge's own defaults and the user's file, e.g. `{"regression": {"train": {"lr": 1e-3}}}`.
    """

    Config: ClassVar[type[Options]]
    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {}


class Dataset(Component, Protocol):
    """Turns an episode index into a task: a pure function of (seed, split, index), equal for every learner and worker.

    `note` is printed beside every result (say, that the data are synthetic).
    """

    kind: ClassVar[Kind]
    note: ClassVar[str] = ""

    def __init__(self, config: Any, *, root: Path) -> None:
        """Keep the options; `root` is the folder that holds data sets. Reading is put off until it is needed."""
        ...

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return what tasks of this shape look like; `DataError` names the largest feasible shape if there are none."""
        ...

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return episodes `first … first + count - 1` as one batched task `[count, ways * shots, ...]`.

        Images may be `uint8`: the engine turns them into floats in [0, 1].
        """
        ...

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return what a person would ask about a split: numbers of classes and images, and the like."""
        ...


class Backbone(Component, Protocol):
    """Builds the network that turns inputs into features; any `nn.Module` will do, with native layers."""

    def __init__(self, config: Any) -> None: ...

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a new module from `[n, *x_shape]` to features; it draws its initial weights from torch's generator."""
        ...


class GradientTransform(Protocol):
    """Gradients in, transformed gradients out, with what it meta-learns and what it carries within a task.

    The inner loop subtracts what the last transform of a chain returns, so that any chain still descends.
    """

    def init(self, params: Params) -> Params:
        """Return what is meta-learned or carried for these parameters, under names of its own; `{}` if nothing."""
        return {}

    def start(self, meta: Params, params: Params) -> Params:
        """Return the state with which one task's adaptation starts."""
        return {}

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return (what to subtract from `params`, new state); `meta` is what `init` returned."""
        ...

    def carry(self, meta: Params, state: Params) -> Params:
        """Return what to add to the adapter's `state.` entries once a task's adaptation has ended."""
        return {}


class Adapter(Component, GradientTransform, Protocol):
    """A learnable gradient transform that a plugin offers; the chain of a run's adapters is one transform again."""

    def __init__(self, config: Any) -> None: ...


class Regularizer(Component, Protocol):
    """Acts on activations, on parameters, or on the batch of task losses; each method's default does nothing."""

    def __init__(self, config: Any) -> None: ...

    def needs_inner_loop(self) -> bool:
        """Return whether, with these options, it means something only where an adapter moves the network's weights."""
        return False

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Store what the regularizer needs of the network's structure; a model calls it once, when it is built."""
        return

    def init(self, modules: Mapping[str, nn.Module], key: Key) -> Params:
        """Return what the regularizer meta-learns, given the network's modules by name; `{}` if nothing."""
        return {}

    def taps(self, name: str, module: nn.Module) -> bool:
        """Return whether `tap` is to see the output of this module."""
        return False

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return the activation to use for `output`; `inputs` is what the module saw, `meta` what `init` returned."""
        return output

    def draws(self, key: Key | None) -> int:
        """Return over how many draws of noise the support loss is averaged."""
        return 1

    def penalty(self, values: Params) -> Tensor | None:
        """Return a term to add to the outer loss once per step, or None."""
        return None

    def combine(self, losses: Tensor) -> Tensor | None:
        """Return a term of the batch of task losses `[tasks]` to add to their mean, or None."""
        return None


class Parts(NamedTuple):
    """What a learner is built of: its tasks' spec, a maker of fresh backbones, the adapter and the regularizers."""

    spec: TaskSpec
    backbone: Callable[[], nn.Module] | None = None
    adapter: GradientTransform | None = None
    regularizers: Mapping[str, Regularizer] = {}


class Learner(Component, Protocol):
    """Learns from a task's support set how to predict its queries; the gradient of `loss` is the meta-gradient."""

    tags: ClassVar[Tags] = Tags()
    norm: str = "none"
    transductive: bool = False
    steps: int = 0

    def __init__(self, config: Any, parts: Parts) -> None: ...

    def init(self, key: Key) -> Params:
        """Return fresh values: parameters to meta-learn and `state.` entries, equal for equal keys."""
        ...

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Fast:
        """Return what was learned from the support set, in any structure; `steps` overrides its own number."""
        ...

    def predict(self, values: Params, fast: Fast, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits or means `[n, outputs]` for queries `x` `[n, *x_shape]`."""
        ...

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return a scalar whose gradient is the task's meta-gradient, and figures to show."""
        ...

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the learner's own test figures for a task, scalars by name (accuracy by instance in a stream, say)."""
        return {}


class Hook(protocols.Component, Protocol):
    """A hook plugin: methods of `metaforge.authoring.hooks.Specs`, marked with `metaforge.hookimpl`."""

    def __init__(self, config: Any) -> None: ...
