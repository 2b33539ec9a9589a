"""Any `nn.Module` as a pure function of a flat dictionary of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from metaforge.authoring.functional import matching, prefixed, select
from metaforge.authoring.keys import fold_in, make_key
from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.exchange import NORMS, exchange_layers
from metaforge.authoring.layers.norms import BatchNorm
from metaforge.authoring.network import Headed, seeded, with_head, zero_inputs
from metaforge.authoring.protocols import STATE, Key, NormPolicy, Params, Parts, Pass, Regularizer, Task
from metaforge.authoring.pure_module import PureModule
from metaforge.errors import ConfigError

# The default pass: without a key, so no noise is drawn and no running statistics change.
EVALUATION = Pass()


class Model:
    """An `nn.Module` as a pure function of a flat dictionary of values.

    The values are the module's parameters (`model.<name>`), the statistics of batch norm (`state.model.<name>`), and
    what regularizers meta-learn (`regularizers.<regularizer>.<name>`). A second network of a learner has another prefix
    than `model`, and its regularizers' values are `<prefix>.regularizers.<regularizer>.<name>`.

    The module is a copy with replaced layers, see `metaforge.authoring.layers`: some of torch's norm layers give wrong
    second-order gradients under `grad(vmap)`, and the noise of torch's dropout layers comes from a global generator.
    It is in training mode in passes with a key, and in evaluation mode in others.

    What the module's owner fixed is fixed here. A parameter that does not require gradients is the entry
    `state.model.<name>`, which neither loop trains. A submodule in evaluation mode stays in it: its dropout is off, and
    its batch norm uses its running statistics.

    Args:
        build: Builds the module; its initial weights come from torch's default generator.
        norm: Which statistics batch norm uses.
        steps: Number of inner steps that have their own running statistics under `norm="per-step"`.
        regularizers: Regularizers by name; each may change the outputs of modules of the network.
        x_shape: Shape of one input, without the batch dimension; only `features` needs it.
        prefix: Prefix of the names of the values, without the final dot. Networks of one learner have different ones.
        context: Size of the context vector that each call gets beside the inputs; 0 for none. Then `build` is called
            with `context=n` and builds a module that takes inputs and a context.
        frozen: Patterns of the names of values that nothing changes, as in `Parts`.

    Attributes:
        module: The network, with its layers replaced.
        prefix: The prefix of the names of its values.
        names: Names of its parameters that require gradients, without the prefix.
        body: Names of the values that are parameters, but not those of the linear head.
        head: Names of the values that are parameters of the linear head; empty without one.
        forward_context: What its layers share during a forward pass.

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
        build: Callable[..., nn.Module],
        *,
        norm: NormPolicy = "transductive",
        steps: int = 0,
        regularizers: Mapping[str, Regularizer] | None = None,
        x_shape: Sequence[int] | None = None,
        prefix: str = "model",
        context: int = 0,
        frozen: Sequence[str] = (),
    ) -> None:
        self._build, self._steps, self._x_shape = build, steps, x_shape
        self.prefix, self._context_size = prefix, context
        self._regularizer_prefix = "regularizers" if prefix == "model" else f"{prefix}.regularizers"
        self.regularizers = dict(regularizers or {})
        self.forward_context = ForwardContext(norm, prefix, frozen)
        self.module = self._built(make_key(0, "structure"))
        self._pure = PureModule(self.module)
        self.names = tuple(name for name, value in self.module.named_parameters() if value.requires_grad)
        self._names = {name: self._value_name(name, value) for name, value in self.module.named_parameters()}
        values = tuple(f"{prefix}.{name}" for name in self.names)
        headed = isinstance(self.module, Headed)
        self.head = tuple(name for name in values if headed and name.startswith(f"{prefix}.2."))
        self.body = tuple(name for name in values if name not in self.head)
        self._norm_layers = [module for module in self.module.modules() if isinstance(module, BatchNorm)]
        self._register_taps()

    @classmethod
    def of(
        cls,
        parts: Parts,
        *,
        norm: NormPolicy = "transductive",
        steps: int = 0,
        outputs: int | None = None,
        prefix: str = "model",
        context: int = 0,
    ) -> Model:
        """Return the model of the backbone in a learner's parts.

        Args:
            parts: The parts of a learner whose tags name a backbone among its needs.
            norm: Which statistics batch norm uses.
            steps: Number of inner steps that have their own running statistics under `norm="per-step"`.
            outputs: Number of outputs of a linear head on the flattened features, or None for no head.
            prefix: Prefix of the names of the values, see `Model`.
            context: Size of the context vector that each call gets beside the inputs; 0 for none.

        Returns:
            A model with the regularizers of the parts.

        Raises:
            ConfigError: The backbone takes no context.
        """
        assert parts.backbone is not None, "the learner's tags do not name a backbone among its needs"
        x_shape = parts.spec.x_shape
        build = parts.backbone if outputs is None else with_head(parts.backbone, outputs, x_shape)
        regularizers, frozen = parts.regularizers, parts.frozen
        # fmt: off
        return cls(build, norm=norm, steps=steps, regularizers=regularizers, x_shape=x_shape, prefix=prefix,
                   context=context, frozen=frozen)
        # fmt: on

    def _built(self, key: Key) -> nn.Module:
        """Return a new module with its layers replaced; its initial weights depend on the key alone."""
        with seeded(key):
            module = self._build(context=self._context_size) if self._context_size else self._build()
            return exchange_layers(module, self.forward_context)

    @property
    def transductive(self) -> bool:
        """Whether a query's prediction depends on the other queries."""
        return self.norm in ("transductive", "per-step")

    @property
    def norm(self) -> str:
        """The norm policy, or `none` if the network has no batch norm."""
        return self.forward_context.policy if any(not layer.fixed for layer in self._norm_layers) else "none"

    @property
    def norm_names(self) -> frozenset[str]:
        """Names of the values that are parameters of norm layers of any kind."""
        norms = {n: m for n, m in self.module.named_modules(prefix=self.prefix) if isinstance(m, NORMS)}
        return frozenset(f"{layer}.{name}" for layer, norm in norms.items() for name, _ in norm.named_parameters())

    @cached_property
    def features(self) -> int:
        """Number of outputs of the module per input, flattened, measured with two inputs of zeros."""
        assert self._x_shape is not None, "the model was built without x_shape, which features needs"
        values = self._values(self.module, make_key(0, "structure"))
        x, *context = zero_inputs(self.module, self._x_shape, self._context_size)
        # Support passes compute the statistics that the policy `support` needs.
        return self(values, x, Pass(role="support"), *context).flatten(1).shape[1]

    def choose(self, what: str | Sequence[str]) -> tuple[str, ...]:
        """Return the names of the values that an inner loop adapts.

        Args:
            what: `weights` (all parameters but those of norm layers), `all`, `head`, `body` (but not its norm layers),
                `context` (none: a context is no value), or a list of patterns of names, such as `["model.0.3.*"]`.

        Raises:
            ConfigError: There is no head, or a pattern matches no name.
        """
        names = (*self.body, *self.head) if self.head else self.body
        if not isinstance(what, str):
            return matching(names, what, where="learner.adapt")
        if what == "head" and not self.head:
            raise ConfigError("The network has no linear head to adapt.", where="learner.adapt", remedy="adapt weights")
        part = {"weights": names, "all": names, "head": self.head, "body": self.body, "context": ()}[what]
        return tuple(name for name in part if what == "all" or name not in self.norm_names)

    def init(self, key: Key) -> Params:
        """Return initial values, which are equal for equal keys; `key` is an int64 scalar tensor."""
        return self._values(self._built(key), key)

    def _values(self, module: nn.Module, key: Key) -> Params:
        """Return the values of a module of this model's structure; regularizers draw theirs from the key."""
        values = {self._value_name(name, value): value.detach().clone() for name, value in module.named_parameters()}
        # Of this module, not of `self.module`: its statistics may come from a file of weights.
        for layer in (layer for layer in module.modules() if isinstance(layer, BatchNorm)):
            values |= layer.initial_state(self._steps)
        modules = dict(self.module.named_modules())
        for name, regularizer in self.regularizers.items():
            values |= prefixed(f"{self._regularizer_prefix}.{name}", regularizer.init(modules, fold_in(key, name)))
        return values

    def _value_name(self, name: str, parameter: Tensor) -> str:
        return f"{self.prefix}.{name}" if parameter.requires_grad else f"{STATE}{self.prefix}.{name}"

    def __call__(self, values: Params, x: Tensor, at: Pass = EVALUATION, context: Tensor | None = None) -> Tensor:
        """Return the module's output `[n, ...]` for `x` `[n, *x_shape]`; arguments as for `observe`."""
        return self.observe(values, x, at, context)[0]

    def observe(
        self, values: Params, x: Tensor, at: Pass = EVALUATION, context: Tensor | None = None
    ) -> tuple[Tensor, Params]:
        """Return the module's output, and the changes of the running statistics.

        Args:
            values: The values of `init`, possibly with adapted parameters.
            x: Inputs `[n, *x_shape]`.
            at: The key, inner step and role of the pass; without a key it is an evaluation.
            context: The context `[context]` of a model that was built with one.

        Returns:
            The output `[n, ...]`, and what to add to the `state.` entries (`{}` in evaluation).
        """
        with self.forward_context.forward_pass(self._own(at), values):
            return self._output(values, x, context), self.forward_context.state_changes

    def observe_task(self, values: Params, task: Task, key: Key | None) -> tuple[Tensor, Tensor, Params]:
        """Return the features of the support and the query set of a task, and the changes of the running statistics.

        Under `transductive`, `per-step` and `support`, each set is a forward pass of its own, because batch norm takes
        its statistics from one of the sets. Otherwise both sets are one batch.

        Args:
            values: The values of `init`.
            task: One task.
            key: The key of the task's noise, or None in evaluation.

        Returns:
            Support features `[n, features]`, query features `[m, features]`, and what to add to the `state.` entries.
        """
        if self.transductive or self.norm == "support":
            at = Pass(key, 0, "support")
            support = self(values, task.support.x, at)
            values = values | self.statistics(values, task.support.x, at)
            query, state = self.observe(values, task.query.x, Pass(key, 0, "query"))
        else:
            both = torch.cat([task.support.x, task.query.x])
            output, state = self.observe(values, both, Pass(key, 0, "query"))
            support, query = output.tensor_split([len(task.support.x)])
        return support.flatten(1), query.flatten(1), state

    def statistics(self, values: Params, x: Tensor, at: Pass, context: Tensor | None = None) -> Params:
        """Return the statistics that normalise queries, as entries that replace those of `values`.

        Args:
            values: The values of `init`, possibly with adapted parameters.
            x: Inputs of the support set `[n, *x_shape]`.
            at: The pass on the support set.
            context: The context `[context]` of a model that was built with one.

        Returns:
            Under `support` the statistics of `x`; otherwise `{}`.
        """
        if self.forward_context.policy != "support" or not self._norm_layers:
            return {}
        with self.forward_context.forward_pass(self._own(at), values):
            self._output(values, x, context)
            return dict(self.forward_context.support_statistics)

    def _own(self, at: Pass) -> Pass:
        """Return a pass with a key of this network: layers of two networks can have equal names."""
        return at if at.key is None or self.prefix == "model" else at._replace(key=fold_in(at.key, self.prefix))

    def _output(self, values: Params, x: Tensor, context: Tensor | None) -> Tensor:
        parameters = {name: values[own] for name, own in self._names.items()}
        return self._pure(parameters, *((x,) if context is None else (x, context)), at=self.forward_context.at)

    def draws(self, key: Key | None) -> int:
        """Return the number of noise draws over which the support loss is averaged."""
        return max((regularizer.draws(key) for regularizer in self.regularizers.values()), default=1)

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
                meta = select(self.forward_context.values, f"{self._regularizer_prefix}.{key}")
                output = regularizer.tap(meta, name, module, inputs[0], output, self.forward_context.at)
            return output

        return hook
