"""Meta Dropout: one dropout mask for a whole task, or noise that is meta-learned to make adaptation generalise.

The learned form is Lee, Nam, Yang, Hwang, "Meta Dropout: Learning to Perturb Latent Features for Generalization",
ICLR 2020 (openreview.net BJgd81SYwr); details follow the authors' code, haebeom-lee/metadrop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring import Key, Options, Params, Pass, Regularizer, fold_in, make_key, normal, select, uniform
from metaforge.errors import ConfigError

_ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Tanh, nn.Sigmoid, nn.Hardswish,
)  # fmt: skip
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class MetaDropoutOptions(Options):
    """Options of Meta Dropout."""

    mode: Literal["mask", "learned"] = Field(
        "mask", description="mask: Bernoulli masks, one per task and activation layer; learned: Lee et al.'s noise"
    )
    rates: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.05, 0.10, 0.15, 0.05), min_length=1, description="mask: share dropped, by layer; the last rate repeats"
    )
    shape: Literal["channel", "element"] = Field("channel", description="mask: drop whole channels, or single entries")
    query: bool = Field(True, description="mask: drop in the query pass too, by the same masks")
    test_draws: int = Field(
        30, ge=1, le=1000, description="learned: draws over which each inner step's loss is averaged in evaluation"
    )


class MetaDropout(Regularizer):
    """Perturbs activations inside adaptation: by one mask per task (`mask`), or by noise that is learned (`learned`).

    Learned noise is for learners with an inner loop. It is drawn for the support set alone, in evaluation too: there
    its key is `make_key(0, "meta-dropout")`.
    """

    Config = MetaDropoutOptions
    reference: ClassVar[str] = "Lee, Nam, Yang, Hwang 2020, openreview.net BJgd81SYwr"

    def __init__(self, config: MetaDropoutOptions) -> None:
        self.config = config
        self.order: dict[str, int] = {}

    def needs_inner_loop(self) -> bool:
        """Return whether it acts on the passes of an inner loop alone: learned noise, and masks that spare queries."""
        return self.config.mode == "learned" or not self.config.query

    def init(self, modules: Mapping[str, nn.Module], key: Key) -> Params:
        """Return φ: under `learned`, a twin of each convolution and hidden linear layer, and one column for the head.

        The head is the last linear layer. Weights are N(0, 0.02²) and biases zero, as the authors draw them.
        Raises `ConfigError` if the network has no layer to act on.
        """
        tapped = {name: module for name, module in modules.items() if self.taps(name, module)}
        if not tapped:
            wanted = "activation module" if self.config.mode == "mask" else "convolution or linear layer"
            raise ConfigError(
                f"meta-dropout finds no {wanted} in the network, so it would do nothing",
                where="regularizers.meta-dropout",
                remedy="choose a backbone whose activations and layers are torch modules, or drop the regularizer",
            )
        if self.config.mode == "mask":
            return {}
        head = [name for name, module in tapped.items() if isinstance(module, nn.Linear)][-1:]
        phi: Params = {}
        for name, module in tapped.items():
            weight = module.get_parameter("weight")
            place, shape = (f"head.{name}", (1, weight.shape[1])) if name in head else (f"gate.{name}", weight.shape)
            phi[f"{place}.weight"] = 0.02 * normal(fold_in(key, name), shape)
            phi[f"{place}.bias"] = weight.new_zeros(shape[0]).detach()
        return phi

    def taps(self, name: str, module: nn.Module) -> bool:
        """Return whether the module is an activation (`mask`), or a convolution or linear layer (`learned`)."""
        if self.config.mode == "learned":
            return isinstance(module, (*_CONVOLUTIONS, nn.Linear))
        if not isinstance(module, _ACTIVATIONS):
            return False
        # A mask's rate goes by the layer's place in the network, which is the order of the first asking.
        self.order.setdefault(name, len(self.order))
        return True

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return the perturbed output `[n, features, ...]`."""
        if self.config.mode == "mask":
            return self.masked(name, output, at)
        if gate := select(meta, f"gate.{name}"):
            return self.gated(gate, name, module, inputs, output, at)
        if head := select(meta, f"head.{name}"):
            return self.noisy(head, name, inputs, output, at)
        return output

    def draws(self, key: Key | None) -> int:
        """Return `test_draws` for learned noise in evaluation, otherwise 1."""
        return self.config.test_draws if self.config.mode == "learned" and key is None else 1

    def masked(self, name: str, output: Tensor, at: Pass) -> Tensor:
        """Return z ∘ m / (1 − p), m ~ Bernoulli(1 − p) `[1, features, 1, ...]`: no step, role or draw is in its key."""
        rate = self.config.rates[min(self.order[name], len(self.config.rates) - 1)]
        if at.key is None or rate == 0 or (at.role == "query" and not self.config.query):
            return output
        features = output.shape[1:] if self.config.shape == "element" else (output.shape[1], *(1,) * (output.dim() - 2))
        kept = uniform(fold_in(fold_in(at.key, "meta-dropout"), name), (1, *features), output.dtype) >= rate
        return output * kept / (1 - rate)

    def gated(self, phi: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return μ ∘ softplus(a + ε): μ the layer's output, a its twin's, ε ~ N(0, 1) on support, 0 on queries."""
        if isinstance(module, _CONVOLUTIONS):
            a = module._conv_forward(inputs, phi["weight"], phi["bias"])
        else:
            a = F.linear(inputs, phi["weight"], phi["bias"])
        if at.role == "support":
            a = a + normal(self.noise_key(name, output, at), a.shape, a.dtype)
        return output * F.softplus(a)

    def noisy(self, phi: Params, name: str, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return the logits, on the support set with softplus(φ · h) ε added; φ is one column for all classes."""
        if at.role == "query":
            return output
        deviation = F.softplus(F.linear(inputs, phi["weight"], phi["bias"]))
        return output + deviation * normal(self.noise_key(name, output, at), output.shape, output.dtype)

    def noise_key(self, name: str, like: Tensor, at: Pass) -> Key:
        """Return the key of a layer's noise in this pass: a new one for each inner step and draw."""
        key = fold_in(at.key, "meta-dropout") if at.key is not None else make_key(0, "meta-dropout").to(like.device)
        return fold_in(fold_in(fold_in(key, name), at.step), at.draw)
