"""Task dropout: one dropout mask per task, shared by all forward passes of the task's adaptation."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Annotated, Literal
from weakref import WeakKeyDictionary

from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring import Key, Options, Params, Pass, Regularizer, fold_in, uniform
from metaforge.errors import ConfigError

_ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Tanh, nn.Sigmoid, nn.Hardswish,
)  # fmt: skip


class TaskDropoutOptions(Options):
    """Options of task dropout."""

    rates: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.05, 0.10, 0.15, 0.05),
        min_length=1,
        description="dropout rate of each activation layer; the last one repeats",
    )
    shape: Literal["channel", "element"] = Field(
        "channel", description="what is dropped: whole channels, or single entries"
    )
    query: bool = Field(True, description="apply the mask in the query pass too")


class TaskDropout(Regularizer):
    """Multiplies the output of each activation layer by one Bernoulli mask per task, in training only."""

    Config = TaskDropoutOptions

    def __init__(self, config: TaskDropoutOptions) -> None:
        self.config = config
        # By module, not by name: two networks of a learner can have layers of equal names.
        self.rates: MutableMapping[nn.Module, float] = WeakKeyDictionary()

    def needs_inner_loop(self) -> bool:
        """Return whether the mask is limited to the support set, so that it acts only in an inner loop."""
        return not self.config.query

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Store the dropout rate of each activation layer, by its place in the network."""
        layers = [module for name, module in modules.items() if self.taps(name, module)]
        last = len(self.config.rates) - 1
        self.rates.update((module, self.config.rates[min(place, last)]) for place, module in enumerate(layers))

    def init(self, modules: Mapping[str, nn.Module], key: Key) -> Params:
        """Return `{}`; raise `ConfigError` if the network has no activation module."""
        if not any(self.taps(name, module) for name, module in modules.items()):
            raise ConfigError(
                "task-dropout finds no activation module in the network, so it would do nothing",
                where="regularizers.task-dropout",
                remedy="choose a backbone whose activations are torch modules, or leave the regularizer out",
            )
        return {}

    def taps(self, name: str, module: nn.Module) -> bool:
        """Return whether the module is an activation."""
        return isinstance(module, _ACTIVATIONS)

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return z ∘ m / (1 − p) `[n, features, ...]`, with one mask m ~ Bernoulli(1 − p) for all examples.

        The key of the mask depends on the task and the layer, but on no inner step, role or draw.
        """
        rate = self.rates[module]
        if at.key is None or rate == 0 or (at.role == "query" and not self.config.query):
            return output
        features = output.shape[1:] if self.config.shape == "element" else (output.shape[1], *(1,) * (output.dim() - 2))
        # The masks were once part of the plugin meta-dropout; another name would change the masks of earlier runs.
        key = fold_in(fold_in(at.key, "meta-dropout"), name)
        return output * (uniform(key, (1, *features), output.dtype) >= rate) / (1 - rate)
