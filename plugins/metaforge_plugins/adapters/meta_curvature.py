"""Meta-Curvature: a meta-learned linear map of the gradient, one small matrix for each dimension of a weight.

Park, Oliva, "Meta-Curvature", NeurIPS 2019 (arXiv 1902.03356).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import Adapter, AdapterTags, InnerStep, Key, Options, Params

# The dimensions of a weight `[out, in, *kernel]`; all positions of a kernel are one dimension.
MODES = ("out", "in", "kernel")


class MetaCurvatureOptions(Options):
    """Options of Meta-Curvature."""

    largest: int = Field(
        2048,
        ge=1,
        description="largest dimension that gets a matrix; a larger one gets a vector, which multiplies elementwise",
    )


class MetaCurvature(Adapter):
    """Multiplies the gradient by a meta-learned matrix along each dimension of a weight, before the inner rate does.

    A matrix n × n is learned for the outputs, for the inputs and for the positions of the kernel. Biases and other
    tensors of one dimension get a vector, which multiplies elementwise. All matrices start as the identity, serve all
    inner steps, and are trained with the initialisation.

    It has no inner rate: an adapter with one follows it, as in `--adapter meta-curvature,sgd`, where `sgd` keeps the
    rate that it has without Meta-Curvature.

    Weight decay of the outer optimiser pulls the matrices to 0 and not to the identity, which stops adaptation;
    `train.groups."adapters.meta-curvature.*".weight_decay=0` exempts them.

    Departures from the paper:
    - Transposes. The authors' code multiplies some dimensions from the right, with the transposes of the matrices here.
      Training is the same, since they start as the identity and an outer optimiser such as Adam works elementwise.
    - Kernels of any number of dimensions. Here the kernel of a weight is all its dimensions after the first two.
    - Large dimensions. The paper has a matrix for each dimension; here one above `largest` has a vector, because the
      memory grows with its square. `adapters.meta-curvature.largest=100000` gives the paper's.
    - Inner rate. The authors use 0.4 on Omniglot, on a loss that is summed over the classes (see the departures of
      `maml`). `adapters.sgd.lr=2.0` gives theirs for 5 ways, and 8.0 for 20 ways.
    - Training. The authors take 60,000 outer steps on Omniglot and 70,000 on sinusoids, as for MAML; suggested are the
      learner's. `train.steps` gives theirs.
    """

    Config = MetaCurvatureOptions
    tags: AdapterTags = AdapterTags(rate=False)
    reference: ClassVar[str] = "Park, Oliva 2019, arXiv 1902.03356"
    defaults: ClassVar = {
        "classification": {"learner": {"steps": 1, "test_steps": 1}},
        "multi-label": {"learner": {"steps": 1, "test_steps": 1}},
        "regression": {"learner": {"steps": 1, "test_steps": 1}},
    }

    def __init__(self, config: MetaCurvatureOptions) -> None:
        self.config = config

    def init(self, params: Params, key: Key) -> Params:
        """Return the identity `<mode>.<name>` for each mode of a weight, and ones `vector.<name>` for a vector."""
        meta: Params = {}
        for name, value in params.items():
            if value.dim() < 2:
                meta[f"vector.{name}"] = torch.ones_like(value)
                continue
            for mode, size in zip(MODES, modes(value).shape, strict=False):
                ones = value.new_ones(size)
                meta[f"{mode}.{name}"] = ones if size > self.config.largest else torch.diag(ones)
        return meta

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the mode products G ×₁ M_out ×₂ M_in ×₃ M_kernel of the gradients, and the state unchanged."""
        return {name: curved(meta, name, g) for name, g in grads.items()}, state


def modes(weight: Tensor) -> Tensor:
    """Return a weight `[out, in, *kernel]` as `[out, in, kernel]`; one without a kernel unchanged."""
    return weight.flatten(2) if weight.dim() > 2 else weight


def curved(meta: Params, name: str, grad: Tensor) -> Tensor:
    """Return the transformed gradient of one tensor, of the same shape."""
    if grad.dim() < 2:
        return meta[f"vector.{name}"] * grad
    result = modes(grad)
    for mode in range(result.dim()):
        result = mode_product(result, meta[f"{MODES[mode]}.{name}"], mode)
    return result.reshape(grad.shape)


def mode_product(tensor: Tensor, factor: Tensor, mode: int) -> Tensor:
    """Return the product of a matrix `[n, n]` or a vector `[n]` with a tensor along one of its dimensions, of size n.

    With a matrix M and the first dimension, entry `[i, j, k]` of the result is the sum of M[i, l] T[l, j, k] over l.
    """
    last = tensor.movedim(mode, -1)
    product = last * factor if factor.dim() == 1 else F.linear(last, factor)
    return product.movedim(-1, mode)
