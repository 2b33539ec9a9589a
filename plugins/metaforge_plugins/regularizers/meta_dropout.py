"""Meta Dropout: noise of meta-learned strength on the activations, with which adaptation generalises better.

Lee, Nam, Yang, Hwang, "Meta Dropout: Learning to Perturb Latent Features for Generalization", ICLR 2020
(openreview.net BJgd81SYwr). Details follow the authors' code, haebeom-lee/metadrop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring import Key, Options, Params, Pass, Regularizer, fold_in, make_key, normal, select
from metaforge.errors import ConfigError

_OF_MASKS = ("mode", "rates", "shape", "query")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class MetaDropoutOptions(Options):
    """Options of Meta Dropout."""

    test_draws: int = Field(
        30, ge=1, le=1000, description="noise draws over which the loss of each inner step is averaged in evaluation"
    )

    @model_validator(mode="before")
    @classmethod
    def from_older_run(cls, options: Any) -> Any:
        """Accept the options in the run folders of a version that had the masks of `task-dropout` as a mode here."""
        if not isinstance(options, Mapping) or "mode" not in options:
            return options
        if options["mode"] != "learned":
            raise ValueError("the masks are the regularizer task-dropout now: name it in place of meta-dropout")
        return {name: value for name, value in options.items() if name not in _OF_MASKS}


class MetaDropout(Regularizer):
    """Perturbs the activations of the support set, in each inner step, with noise whose strength is meta-learned.

    The noise is part of adaptation, so it is drawn in evaluation too. Its key is then `make_key(0, "meta-dropout")`.
    """

    Config = MetaDropoutOptions
    reference: ClassVar[str] = "Lee, Nam, Yang, Hwang 2020, openreview.net BJgd81SYwr"

    def __init__(self, config: MetaDropoutOptions) -> None:
        self.config = config

    def needs_inner_loop(self) -> bool:
        """Return True: the noise acts on the inner loop alone."""
        return True

    def init(self, modules: Mapping[str, nn.Module], key: Key) -> Params:
        """Return φ: for each convolution and hidden linear layer a layer of equal shape, for the head one column.

        The head is the last linear layer. As in the authors' code, weights are drawn from N(0, 0.02²) and biases are 0.
        Raises `ConfigError` if the network has no convolution and no linear layer.
        """
        layers = {name: module for name, module in modules.items() if self.taps(name, module)}
        if not layers:
            raise ConfigError(
                "meta-dropout finds no convolution or linear layer in the network, so it would do nothing",
                where="regularizers.meta-dropout",
                remedy="choose a backbone whose layers are torch modules, or leave the regularizer out",
            )
        head = [name for name, module in layers.items() if isinstance(module, nn.Linear)][-1:]
        phi: Params = {}
        for name, module in layers.items():
            weight = module.get_parameter("weight")
            place, shape = (f"head.{name}", (1, weight.shape[1])) if name in head else (f"gate.{name}", weight.shape)
            phi[f"{place}.weight"] = 0.02 * normal(fold_in(key, name), shape)
            phi[f"{place}.bias"] = weight.new_zeros(shape[0]).detach()
        return phi

    def taps(self, name: str, module: nn.Module) -> bool:
        """Return whether the module is a convolution or a linear layer."""
        return isinstance(module, (*_CONVOLUTIONS, nn.Linear))

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return the perturbed output `[n, features, ...]`."""
        if gate := select(meta, f"gate.{name}"):
            return self.gated(gate, name, module, inputs, output, at)
        if head := select(meta, f"head.{name}"):
            return self.noisy_logits(head, name, inputs, output, at)
        return output

    def draws(self, key: Key | None) -> int:
        """Return 1 in training and `test_draws` in evaluation."""
        return self.config.test_draws if key is None else 1

    def gated(self, phi: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return μ ∘ softplus(a + ε): μ is the layer's output, a that of its layer φ, and ε ~ N(0, 1).

        On the query set ε is 0.
        """
        if isinstance(module, _CONVOLUTIONS):
            a = module._conv_forward(inputs, phi["weight"], phi["bias"])
        else:
            a = F.linear(inputs, phi["weight"], phi["bias"])
        if at.role == "support":
            a = a + normal(self.noise_key(name, output, at), a.shape, a.dtype)
        return output * F.softplus(a)

    def noisy_logits(self, phi: Params, name: str, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return the logits, on the support set with softplus(φ · h) ε added; φ is one column for all classes."""
        if at.role == "query":
            return output
        deviation = F.softplus(F.linear(inputs, phi["weight"], phi["bias"]))
        return output + deviation * normal(self.noise_key(name, output, at), output.shape, output.dtype)

    def noise_key(self, name: str, like: Tensor, at: Pass) -> Key:
        """Return the key of a layer's noise in this pass; it differs for each inner step and draw."""
        key = fold_in(at.key, "meta-dropout") if at.key is not None else make_key(0, "meta-dropout").to(like.device)
        return fold_in(fold_in(fold_in(key, name), at.step), at.draw)
