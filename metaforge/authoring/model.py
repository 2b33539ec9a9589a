"""Any `nn.Module` as a pure function of a flat dictionary of values, and a base class for learners of one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaforge.authoring.functional import prefixed, select
from metaforge.authoring.keys import fold_in, make_key
from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.exchange import NORMS, exchange_layers
from metaforge.authoring.layers.norms import BatchNorm
from metaforge.authoring.network import seeded, with_head, zero_inputs
from metaforge.authoring.protocols import Key, Learner, NormPolicy, Params, Parts, Pass, Regularizer, Task, TaskSpec

# The default pass: without a key, so no noise is drawn and no running statistics change.
EVALUATION = Pass()


class Model:
    """An `nn.Module` as a pure function of a flat dictionary of values.

    The values are the module's parameters (`model.<name>`), the statistics of batch norm (`state.model.<name>`), and
    what regularizers meta-learn (`regularizers.<regularizer>.<name>`). The module is a copy with replaced layers, see
    `metaforge.authoring.layers`: some of torch's norm layers give wrong second-order gradients under `grad(vmap)`, and
    the noise of torch's dropout layers comes from a global generator.

    Args:
        build: Builds the module; its initial weights come from torch's default generator.
        norm: Which statistics batch norm uses.
        steps: Number of inner steps that have their own running statistics under `norm="per-step"`.
        regularizers: Regularizers by name; each may change the outputs of modules of the network.
        x_shape: Shape of one input, without the batch dimension; only `features` needs it.
        frozen: Patterns of the names of values that nothing changes, as in `Parts`.

    Attributes:
        module: The network, with its layers replaced.
        names: Names of its parameters, without `model.`.
        context: What its layers share during a forward pass.

    Example:
        One step of gradient descent, as a pure function of the weights:

        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import Model, make_key
        >>> model = Model(lambda: nn.Linear(3, 2))
        >>> values = model.init(make_key(0))
        >>> sorted(values)
        ['model.bias', 'model.weight']
        >>> x = torch.ones(4, 3)
        >>> grads = torch.func.grad(lambda values: model(values, x).square().mean())(values)
        >>> adapted = {name: value - 0.1 * grads[name] for name, value in values.items()}
        >>> model(adapted, x).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        norm: NormPolicy = "transductive",
        steps: int = 0,
        regularizers: Mapping[str, Regularizer] | None = None,
        x_shape: Sequence[int] | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        self._build, self._steps, self._x_shape = build, steps, x_shape
        self.regularizers = dict(regularizers or {})
        self.context = ForwardContext(norm, frozen)
        with seeded(make_key(0, "structure")):
            self.module = exchange_layers(build(), self.context)
        self.names = tuple(name for name, _ in self.module.named_parameters())
        self.buffers = {name: value.detach().clone() for name, value in self.module.named_buffers()}
        self._norm_layers = [module for module in self.module.modules() if isinstance(module, BatchNorm)]
        self._state_names = tuple(name for layer in self._norm_layers for name in layer.state_names)
        self._register_taps()

    @classmethod
    def of(
        cls, parts: Parts, *, norm: NormPolicy = "transductive", steps: int = 0, outputs: int | None = None
    ) -> Model:
        """Return the model of the backbone in a learner's parts.

        Args:
            parts: The parts of a learner whose tags name a backbone among its needs.
            norm: Which statistics batch norm uses.
            steps: Number of inner steps that have their own running statistics under `norm="per-step"`.
            outputs: Number of outputs of a linear head on the flattened features, or None for no head.

        Returns:
            A model with the regularizers of the parts.
        """
        assert parts.backbone is not None, "the learner's tags do not name a backbone among its needs"
        x_shape = parts.spec.x_shape
        build = parts.backbone if outputs is None else with_head(parts.backbone, outputs, x_shape)
        return cls(build, norm=norm, steps=steps, regularizers=parts.regularizers, x_shape=x_shape, frozen=parts.frozen)

    @property
    def transductive(self) -> bool:
        """Whether a query's prediction depends on the other queries."""
        return self.norm == "transductive"

    @property
    def norm(self) -> str:
        """The norm policy, or `none` if the network has no batch norm."""
        return self.context.policy if self._norm_layers else "none"

    @property
    def norm_names(self) -> frozenset[str]:
        """Names of the values that are parameters of norm layers of any kind."""
        norms = {n: m for n, m in self.module.named_modules() if isinstance(m, NORMS)}
        return frozenset(f"model.{layer}.{name}" for layer, m in norms.items() for name, _ in m.named_parameters())

    @cached_property
    def features(self) -> int:
        """Number of outputs of the module per input, flattened, measured with two inputs of zeros."""
        assert self._x_shape is not None, "the model was built without x_shape, which features needs"
        values = self._values(self.module, make_key(0, "structure"))
        # Support passes compute the statistics that the policy `support` needs.
        return self(values, zero_inputs(self.module, self._x_shape), Pass(role="support")).flatten(1).shape[1]

    def init(self, key: Key) -> Params:
        """Return initial values, which are equal for equal keys; `key` is an int64 scalar tensor."""
        with seeded(key):
            module = exchange_layers(self._build(), self.context)
        return self._values(module, key)

    def _values(self, module: nn.Module, key: Key) -> Params:
        """Return the values of a module of this model's structure; regularizers draw theirs from the key."""
        values = {f"model.{name}": value.detach().clone() for name, value in module.named_parameters()}
        if self.context.policy in ("running", "per-step"):
            lead = (self._steps + 1,) if self.context.policy == "per-step" else ()
            # Of this module, not of `self.module`: its statistics may come from a file of weights.
            for layer in (layer for layer in module.modules() if isinstance(layer, BatchNorm)):
                for name, initial in zip(layer.state_names, (layer.initial_mean, layer.initial_var), strict=True):
                    values[name] = initial.expand(*lead, -1).clone()
        modules = dict(self.module.named_modules())
        for name, regularizer in self.regularizers.items():
            values |= prefixed(f"regularizers.{name}", regularizer.init(modules, fold_in(key, name)))
        return values

    def __call__(self, values: Params, x: Tensor, at: Pass = EVALUATION) -> Tensor:
        """Return the module's output `[n, ...]` for `x` `[n, *x_shape]`."""
        return self.observe(values, x, at)[0]

    def observe(self, values: Params, x: Tensor, at: Pass = EVALUATION) -> tuple[Tensor, Params]:
        """Return the module's output, and the changes of the running statistics.

        Args:
            values: The values of `init`, possibly with adapted parameters.
            x: Inputs `[n, *x_shape]`.
            at: The key, inner step and role of the pass; without a key it is an evaluation.

        Returns:
            The output `[n, ...]`, and what to add to the `state.` entries (`{}` in evaluation).
        """
        state = {name: values[name] for name in self._state_names if name in values}
        with self.context.forward_pass(at, state, values):
            output: Tensor = functional_call(self.module, self._tensors(values, x), (x,))
            return output, self.context.state_changes

    def observe_task(self, values: Params, task: Task, key: Key | None) -> tuple[Tensor, Tensor, Params]:
        """Return the features of the support and the query set of a task, and the changes of the running statistics.

        Under the policies `transductive` and `support`, each set is a forward pass of its own, because batch norm takes
        its statistics from one of the sets. Otherwise both sets are one batch.

        Args:
            values: The values of `init`.
            task: One task.
            key: The key of the task's noise, or None in evaluation.

        Returns:
            Support features `[n, features]`, query features `[m, features]`, and what to add to the `state.` entries.
        """
        if self.norm in ("transductive", "support"):
            at = Pass(key, 0, "support")
            support = self(values, task.support.x, at)
            values = values | self.statistics(values, task.support.x, at)
            query, state = self.observe(values, task.query.x, Pass(key, 0, "query"))
        else:
            both = torch.cat([task.support.x, task.query.x])
            output, state = self.observe(values, both, Pass(key, 0, "query"))
            support, query = output.tensor_split([len(task.support.x)])
        return support.flatten(1), query.flatten(1), state

    def statistics(self, values: Params, x: Tensor, at: Pass) -> Params:
        """Return the statistics that normalise queries, as entries that replace those of `values`.

        Args:
            values: The values of `init`, possibly with adapted parameters.
            x: Inputs of the support set `[n, *x_shape]`.
            at: The pass on the support set.

        Returns:
            Under `support` the statistics of `x`; under `per-step`, in evaluation, the running statistics of the step;
            otherwise `{}`.
        """
        if self.context.policy == "per-step" and at.key is None:
            return {name: values[name][min(at.step, len(values[name]) - 1)].unsqueeze(0) for name in self._state_names}
        if self.context.policy != "support" or not self._norm_layers:
            return {}
        with self.context.forward_pass(at, {}, values):
            functional_call(self.module, self._tensors(values, x), (x,))
            return dict(self.context.support_statistics)

    def draws(self, key: Key | None) -> int:
        """Return the number of noise draws over which the support loss is averaged."""
        return max((regularizer.draws(key) for regularizer in self.regularizers.values()), default=1)

    def _tensors(self, values: Params, x: Tensor) -> Params:
        """Return the module's parameters and buffers; buffers get the device of `x`, and floats the dtype of `x`."""
        floats = x.is_floating_point()
        buffers = {
            name: value.to(x) if floats and value.is_floating_point() else value.to(x.device)
            for name, value in self.buffers.items()
        }
        return {name: values[f"model.{name}"] for name in self.names} | buffers

    def _register_taps(self) -> None:
        modules = dict(self.module.named_modules())
        for regularizer in self.regularizers.values():
            regularizer.attach(modules)
        for name, module in modules.items():
            tapping = {key: r for key, r in self.regularizers.items() if r.taps(name, module)}
            if tapping:
                module.register_forward_hook(self._hook(name, tapping))

    def _hook(self, name: str, tapping: Mapping[str, Regularizer]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for key, regularizer in tapping.items():
                meta = select(self.context.values, f"regularizers.{key}")
                output = regularizer.tap(meta, name, module, inputs[0], output, self.context.at)
            return output

        return hook


class ModelLearner(Learner):
    """Base class of learners with one network: it builds the model, and its values are the model's.

    Args:
        config: The learner's options.
        parts: What the learner is built from, including a backbone.
        norm: Which statistics batch norm uses.
        steps: Number of inner steps that have their own running statistics under `norm="per-step"`.
        outputs: Number of outputs of a linear head on the flattened features, or None for no head.

    Example:
        A learner that scores a class by the similarity of the query to the support examples of the class:

        >>> from torch import nn
        >>> from metaforge.authoring import (
        ...     Aux, ModelLearner, Options, Parts, Pass, TaskShape, TaskSpec, cross_entropy, make_key, one_hot
        ... )
        >>> class Similarity(ModelLearner):
        ...     Config = Options
        ...
        ...     def adapt(self, values, support, *, steps=None, key=None):
        ...         features = self.model(values, support.x, Pass(key, role="support"))
        ...         return features.T @ one_hot(support.y, self.spec.outputs)
        ...
        ...     def predict(self, values, fast, x, *, key=None):
        ...         return self.model(values, x, Pass(key, role="query")) @ fast
        ...
        ...     def loss(self, values, task, key):
        ...         logits = self.predict(values, self.adapt(values, task.support, key=key), task.query.x, key=key)
        ...         return cross_entropy(logits, task.query.y), Aux({})
        >>> spec = TaskSpec("classification", x_shape=(3,), outputs=2, shape=TaskShape(ways=2, shots=1, queries=5))
        >>> learner = Similarity(Options(), Parts(spec, backbone=lambda: nn.Linear(3, 8)))
        >>> sorted(learner.init(make_key(0)))
        ['model.bias', 'model.weight']
    """

    spec: TaskSpec
    model: Model

    def __init__(
        self,
        config: Any,
        parts: Parts,
        *,
        norm: NormPolicy = "transductive",
        steps: int = 0,
        outputs: int | None = None,
    ) -> None:
        self.config, self.spec = config, parts.spec
        self.model = Model.of(parts, norm=norm, steps=steps, outputs=outputs)
        self.norm, self.transductive = self.model.norm, self.model.transductive

    def init(self, key: Key) -> Params:
        """Return the model's values; equal for equal keys."""
        return self.model.init(fold_in(key, "model"))
