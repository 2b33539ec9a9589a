"""Any `nn.Module` as a pure function of a flat dictionary of values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaforge.authoring.functional import prefixed, select
from metaforge.authoring.keys import fold_in, make_key
from metaforge.authoring.layers.exchange import NORMS, exchange_layers
from metaforge.authoring.layers.norms import BatchNorm, ForwardContext
from metaforge.authoring.protocols import (
    STATE,
    Key,
    Learner,
    NormPolicy,
    Params,
    Parts,
    Pass,
    Regularizer,
    TaskSpec,
)


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Let modules draw their initial weights from torch's generator seeded by `key`, and put the generator back."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(key))
    try:
        yield
    finally:
        generator.set_state(before)


def with_head(backbone: Callable[[], nn.Module], outputs: int, x_shape: Sequence[int]) -> Callable[[], nn.Module]:
    """Return a maker of `backbone`, flattened and followed by a linear head of `outputs`."""

    def build() -> nn.Module:
        body = backbone()
        return nn.Sequential(body, nn.Flatten(), nn.Linear(feature_size(body, x_shape), outputs))

    return build


def feature_size(module: nn.Module, x_shape: Sequence[int]) -> int:
    """Return how many features `module` makes of one input of shape `x_shape`, flattened."""
    # A copy in evaluation mode: the module is its owner's, running statistics and all.
    module = copy.deepcopy(module).eval()
    first = next(module.parameters(), torch.empty(0))
    with torch.no_grad():
        size: int = module(first.new_zeros((2, *x_shape))).flatten(1).shape[1]
    return size


EVALUATION = Pass()


class Model:
    """Any `nn.Module` as a pure function of a flat dictionary of values.

    The values live under `model.`, running statistics under `state.model.`, regularizers' parameters under
    `regularizers.<name>.`. Native batch, layer and instance norm are replaced by layers built of primitives, because
    the native ones give wrong second-order meta-gradients under `torch.func.vmap`; batch norm follows the policy
    `norm`.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        *,
        norm: NormPolicy = "transductive",
        steps: int = 0,
        regularizers: Mapping[str, Regularizer] | None = None,
    ) -> None:
        self._build, self._steps = build, steps
        self.regularizers = dict(regularizers or {})
        self.frame = ForwardContext(norm)
        with seeded(make_key(0, "structure")):
            self.module = exchange_layers(build(), self.frame)
        self.names = tuple(name for name, _ in self.module.named_parameters())
        self.buffers = {name: value.detach().clone() for name, value in self.module.named_buffers()}
        self.norm_layers = {n: m for n, m in self.module.named_modules() if isinstance(m, BatchNorm)}
        self._state_names = tuple(f"{STATE}model.{n}.{what}" for n in self.norm_layers for what in ("mean", "var"))
        self._tap()

    @classmethod
    def of(
        cls, parts: Parts, *, norm: NormPolicy = "transductive", steps: int = 0, outputs: int | None = None
    ) -> Model:
        """Return the model of the backbone that a learner was given.

        Args:
            parts: What the learner is built of; its tags name a backbone among its needs.
            norm: Whose statistics batch norm uses.
            steps: Number of inner steps that have statistics of their own under `norm="per-step"`.
            outputs: If given, the features are flattened and followed by a linear head of so many outputs.

        Returns:
            A model with the regularizers of the parts.
        """
        assert parts.backbone is not None, "the learner's tags do not say that it needs a backbone"
        build = parts.backbone if outputs is None else with_head(parts.backbone, outputs, parts.spec.x_shape)
        return cls(build, norm=norm, steps=steps, regularizers=parts.regularizers)

    @property
    def transductive(self) -> bool:
        """Whether a query's prediction depends on the other queries."""
        return bool(self.norm_layers) and self.frame.policy == "transductive"

    @property
    def norm(self) -> str:
        """The norm policy, or `none` where the network has no batch norm."""
        return self.frame.policy if self.norm_layers else "none"

    @property
    def norm_names(self) -> frozenset[str]:
        """Names, under `model.`, of the parameters that belong to norm layers of any kind."""
        norms = {n: m for n, m in self.module.named_modules() if isinstance(m, NORMS)}
        return frozenset(f"model.{layer}.{name}" for layer, m in norms.items() for name, _ in m.named_parameters())

    def init(self, key: Key) -> Params:
        """Return fresh weights, running statistics and regularizers' parameters; equal for equal keys."""
        with seeded(key):
            module = exchange_layers(self._build(), self.frame)
        values = {f"model.{name}": value.detach().clone() for name, value in module.named_parameters()}
        if self.frame.policy in ("running", "per-step"):
            lead = (self._steps + 1,) if self.frame.policy == "per-step" else ()
            for name, layer in self.norm_layers.items():
                values[f"{STATE}model.{name}.mean"] = layer.mean.expand(*lead, -1).clone()
                values[f"{STATE}model.{name}.var"] = layer.var.expand(*lead, -1).clone()
        modules = dict(self.module.named_modules())
        for name, regularizer in self.regularizers.items():
            values |= prefixed(f"regularizers.{name}", regularizer.init(modules, fold_in(key, name)))
        return values

    def __call__(self, values: Params, x: Tensor, at: Pass = EVALUATION) -> Tensor:
        """Return the module's output for `x` `[n, ...]`."""
        return self.observe(values, x, at)[0]

    def observe(self, values: Params, x: Tensor, at: Pass = EVALUATION) -> tuple[Tensor, Params]:
        """Return (output, what to add to the `state.` entries); the latter is empty in evaluation."""
        state = {name: values[name] for name in self._state_names if name in values}
        with self.frame.running(at, state, values):
            output: Tensor = functional_call(self.module, self._tensors(values, x), (x,))
            return output, self.frame.deltas

    def statistics(self, values: Params, x: Tensor, at: Pass) -> Params:
        """Return the statistics that predictions are to use, to be laid over the values.

        Under `support` those of `x`, under `per-step` in evaluation those of the step `at`; `{}` under any other.
        """
        if self.frame.policy == "per-step" and at.key is None:
            return {name: self._reached(values[name], at.step) for name in self._state_names}
        if self.frame.policy != "support" or not self.norm_layers:
            return {}
        with self.frame.running(at, {}, values):
            functional_call(self.module, self._tensors(values, x), (x,))
            return dict(self.frame.seen)

    def draws(self, key: Key | None) -> int:
        """Return over how many draws of noise the support loss is averaged."""
        return max((r.draws(key) for r in self.regularizers.values()), default=1)

    @staticmethod
    def _reached(slots: Tensor, step: int) -> Tensor:
        return slots[min(step, len(slots) - 1)].unsqueeze(0)

    def _tensors(self, values: Params, x: Tensor) -> Params:
        """Return the module's parameters, and its buffers on the device of `x`; floats get the type of `x`."""
        floats = x.is_floating_point()
        buffers = {
            name: value.to(x) if floats and value.is_floating_point() else value.to(x.device)
            for name, value in self.buffers.items()
        }
        return {name: values[f"model.{name}"] for name in self.names} | buffers

    def _tap(self) -> None:
        for name, module in self.module.named_modules():
            tapping = {key: r for key, r in self.regularizers.items() if r.taps(name, module)}
            if tapping:
                module.register_forward_hook(self._hook(name, tapping))

    def _hook(self, name: str, tapping: Mapping[str, Regularizer]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            frame = self.frame
            for key, regularizer in tapping.items():
                meta = select(frame.values, f"regularizers.{key}")
                output = regularizer.tap(meta, name, module, inputs[0], output, frame.at)
            return output

        return hook


class ModelLearner(Learner):
    """A learner of one network: keeps the options, builds the model, and takes its norm policy over."""

    spec: TaskSpec
    model: Model

    def __init__(self, config: Any, parts: Parts, *, norm: NormPolicy = "transductive") -> None:
        self.config, self.spec = config, parts.spec
        self.model = Model.of(parts, norm=norm)
        self.norm, self.transductive = self.model.norm, self.model.transductive
