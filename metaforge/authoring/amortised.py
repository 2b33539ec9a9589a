"""What neural processes share: codes of examples, contexts of varied size, latent variables, and distributions.

Garnelo et al., "Conditional Neural Processes", ICML 2018 (arXiv 1807.01613); Garnelo et al., "Neural Processes", 2018
(arXiv 1807.01622); Kim et al., "Attentive Neural Processes", ICLR 2019 (arXiv 1901.05761).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.distributions import coverage, log_mean, log_normal, normal_divergence
from metaforge.authoring.functional import prefixed, select
from metaforge.authoring.keys import fold_in, normal, permutation, uniform
from metaforge.authoring.kinds import score
from metaforge.authoring.mlp import MLP
from metaforge.authoring.protocols import Aux, Examples, Key, Learner, Options, Params, Parts, Tags, Task

Units = Annotated[int, Field(ge=1, le=65536)]


class ProcessOptions(Options):
    """Options of every neural process.

    Example:
        >>> from metaforge.authoring import ProcessOptions
        >>> ProcessOptions(encoder=(64, 64)).decoder
        (128, 128)
    """

    encoder: tuple[Units, ...] = Field((128, 128, 128, 128), min_length=1, description="units of each encoder layer")
    decoder: tuple[Units, ...] = Field((128, 128), description="units of each hidden layer of the decoder")
    vary_context: bool = Field(
        True, description="in training, use a random number of the support examples, from one to all"
    )


class LatentProcessOptions(ProcessOptions):
    """Options of every neural process with a latent variable.

    Example:
        >>> from metaforge.authoring import LatentProcessOptions
        >>> LatentProcessOptions(latent=16).vary_context
        True
    """

    latent: int = Field(128, ge=1, le=65536, description="numbers in the latent variable z")
    samples: int = Field(32, ge=1, le=10_000, description="samples of z from which log-likelihoods are computed")


class ProcessLearner(Learner):
    """Base class of neural processes: networks that encode examples, and one that decodes normal distributions.

    Args:
        config: The options, `ProcessOptions` or a subclass.
        parts: What the learner is built from.

    Attributes:
        prefix: The prefix of the networks' weights among the learner's values.
        widths: The number of inputs and the units of each layer, by the name of a network. A subclass sets it.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Aux, Examples, Parts, ProcessLearner, ProcessOptions, TaskShape, TaskSpec
        >>> from metaforge.authoring import make_key, mean_squared_error
        >>> class Codes(ProcessLearner):
        ...     prefix = "codes"
        ...     def __init__(self, config, parts):
        ...         super().__init__(config, parts)
        ...         self.widths = {"encoder": (self.inputs + self.outputs, *config.encoder)}
        ...     def adapt(self, values, support, *, steps=None, key=None):
        ...         return self.encode(values, "encoder", support, self.context_weights(len(support.x), key, support.x))
        ...     def predict(self, values, fast, x, *, key=None):
        ...         return torch.zeros(len(x), self.outputs)
        ...     def loss(self, values, task, key):
        ...         fast = self.adapt(values, task.support, key=key)
        ...         return mean_squared_error(self.predict(values, fast, task.query.x), task.query.y), Aux({})
        >>> learner = Codes(ProcessOptions(), Parts(TaskSpec("regression", (1,), 1, TaskShape(1, 5, 5))))
        >>> learner.adapt(learner.init(make_key(0)), Examples(torch.zeros(5, 1), torch.zeros(5, 1))).shape
        torch.Size([5, 128])
    """

    Config: ClassVar[type[Options]] = ProcessOptions
    tags: Tags = Tags(kinds=frozenset({"regression"}), stochastic=True)
    prefix: ClassVar[str]
    widths: dict[str, tuple[int, ...]]

    def __init__(self, config: Any, parts: Parts) -> None:
        self.config = config
        self.inputs, self.outputs = math.prod(parts.spec.x_shape), parts.spec.outputs

    def init(self, key: Key) -> Params:
        """Return the weights of all networks, uniform in ±1/√inputs as in `nn.Linear`."""
        values: Params = {}
        for part, widths in self.widths.items():
            values |= MLP(part, widths).init(key)
        return prefixed(self.prefix, values)

    def network(self, values: Params, part: str, x: Tensor) -> Tensor:
        """Return the output `[..., units]` of a network: linear layers with ReLU between them."""
        return MLP(part, self.widths[part])(select(values, self.prefix), x)

    def encode(self, values: Params, part: str, examples: Examples, weights: Tensor) -> Tensor:
        """Return the code of each example `[n, units]`, by the network `part`; those of weight 0 must not matter."""
        return self.network(values, part, torch.cat([examples.x.flatten(1), examples.y], -1))

    def decode(self, values: Params, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and σ of targets, each `[..., outputs]`, from inputs with their codes; σ = 0.1 + 0.9 softplus(s)."""
        mean, s = self.network(values, "decoder", codes).chunk(2, -1)
        return mean, 0.1 + 0.9 * F.softplus(s)

    def context_weights(self, n: int, key: Key | None, like: Tensor) -> Tensor:
        """Return a weight of 0 or 1 for each of `n` support examples, at least one of them 1; all 1 in evaluation."""
        if key is None or not self.config.vary_context or n == 0:
            return like.new_ones(n)
        count = 1 + (uniform(fold_in(key, "count"), ()) * n).floor()
        return (permutation(fold_in(key, "context"), n) < count).to(like.dtype)


class LatentProcessLearner(ProcessLearner):
    """Base class of neural processes with a latent variable z: a subclass defines `context` and `codes`.

    The posterior q(z | examples) is normal. It is trained by the evidence lower bound, whose prior is q(z | context).

    Args:
        config: The options, `LatentProcessOptions` or a subclass.
        parts: What the learner is built from.
        units: Number of features per input that `codes` returns, beside the input itself.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Examples, LatentProcessLearner, LatentProcessOptions, Parts, TaskShape
        >>> from metaforge.authoring import TaskSpec, make_key
        >>> class Plain(LatentProcessLearner):
        ...     "Its decoder reads the inputs and z."
        ...     prefix = "plain"
        ...     def context(self, values, support, weights):
        ...         return {}
        ...     def codes(self, values, fast, x):
        ...         return x.flatten(1)
        >>> learner = Plain(LatentProcessOptions(), Parts(TaskSpec("regression", (1,), 1, TaskShape(1, 5, 5))))
        >>> values = learner.init(make_key(0))
        >>> fast = learner.adapt(values, Examples(torch.zeros(5, 1), torch.zeros(5, 1)))
        >>> learner.predict(values, fast, torch.zeros(7, 1)).shape
        torch.Size([7, 1])
    """

    Config: ClassVar[type[Options]] = LatentProcessOptions

    def __init__(self, config: Any, parts: Parts, units: int = 0) -> None:
        super().__init__(config, parts)
        code, latent = config.encoder[-1], config.latent
        self.widths = {
            "latent_encoder": (self.inputs + self.outputs, *config.encoder),
            "latent": (code, code, 2 * latent),
            "decoder": (self.inputs + units + latent, *config.decoder, 2 * self.outputs),
        }

    @abstractmethod
    def context(self, values: Params, support: Examples, weights: Tensor) -> Params:
        """Return what `codes` reads of a context: the support examples of weight 1.

        Args:
            values: The learner's values.
            support: The support set.
            weights: A weight of 0 or 1 for each support example `[n]`.

        Returns:
            Tensors by name, without the names `mean` and `deviation`.
        """

    @abstractmethod
    def codes(self, values: Params, fast: Params, x: Tensor) -> Tensor:
        """Return the inputs with what the decoder gets to know of the context beside z.

        Args:
            values: The learner's values.
            fast: What `context` returned.
            x: Inputs `[n, *x_shape]`.

        Returns:
            Features `[n, inputs + units]`.
        """

    def posterior(self, values: Params, examples: Examples, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z | examples), each `[latent]`; 0.1 < σ < 1."""
        code = mean_code(self.encode(values, "latent_encoder", examples, weights), weights)
        mean, s = self.network(values, "latent", code).chunk(2, -1)
        return mean, 0.1 + 0.9 * s.sigmoid()

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return mean and deviation of q(z | context) `[latent]`, and the context; some of the examples in training."""
        weights = self.context_weights(len(support.x), key, support.x)
        mean, deviation = self.posterior(values, support, weights)
        return {"mean": mean, "deviation": deviation} | self.context(values, support, weights)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the means `[n, outputs]` at the mean of q(z | context)."""
        return self.distribution(values, self.codes(values, fast, x), fast["mean"])[0]

    def deviation(self, values: Params, fast: Params, x: Tensor) -> Tensor:
        """Return the standard deviations `[n, outputs]` at the mean of q(z | context)."""
        return self.distribution(values, self.codes(values, fast, x), fast["mean"])[1]

    def distribution(self, values: Params, codes: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and σ of targets, each `[..., n, outputs]`, from `codes` `[n, ·]` and latents z `[..., latent]`."""
        shape = (*z.shape[:-1], len(codes), -1)
        return self.decode(values, torch.cat([codes.expand(shape), z.unsqueeze(-2).expand(shape)], -1))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return −ELBO / n of all n targets: −log N(y; μ, σ) with z ~ q(z | all), plus KL(q(z | all) ‖ q(z | context)).

        The score is that of the queries at the mean of q(z | context), as in evaluation.
        """
        x, y = everything = Examples(*(torch.cat(pair) for pair in zip(task.support, task.query, strict=True)))
        fast = self.adapt(values, task.support, key=key)
        mean, deviation = self.posterior(values, everything, x.new_ones(len(x)))
        codes = self.codes(values, fast, x)
        z = mean + deviation * normal(fold_in(key, "latent"), mean.shape, mean.dtype)
        divergence = normal_divergence(mean, deviation, fast["mean"], fast["deviation"]).sum()
        loss = divergence / y.numel() - log_normal(y, *self.distribution(values, codes, z)).mean()
        predicted = self.distribution(values, codes[len(task.support.x) :], fast["mean"])[0]
        metrics = {"score": score("regression", predicted, task.query.y), "divergence": divergence}
        return loss, Aux({name: value.detach() for name, value in metrics.items()})

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return log-likelihoods per query target, and the coverage of the central 95 % intervals.

        `log_likelihood` is that of each target by itself, log mean_z N(y; μ, σ) with z ~ q(z | context).
        `joint_log_likelihood` is that of all targets together, divided by their number; it is estimated with
        z ~ q(z | support and queries), weighted by q(z | context) / q(z | support and queries).
        """
        y, support = task.query.y, task.support
        fast = self.adapt(values, support)
        codes = self.codes(values, fast, task.query.x)
        prior = fast["mean"], fast["deviation"]
        noise = normal(fold_in(key, "samples"), (self.config.samples, self.config.latent), prior[0].dtype)
        predicted = self.distribution(values, codes, prior[0] + prior[1] * noise)
        everything = Examples(*(torch.cat(pair) for pair in zip(support, task.query, strict=True)))
        proposal = self.posterior(values, everything, y.new_ones(len(everything.x)))
        z = proposal[0] + proposal[1] * noise
        ratio = (log_normal(z, *prior) - log_normal(z, *proposal)).sum(-1)
        joint = log_mean(log_normal(y, *self.distribution(values, codes, z)).sum((-2, -1)) + ratio)
        return {
            "log_likelihood": log_mean(log_normal(y, *predicted).sum(-1)).mean(),
            "joint_log_likelihood": joint / len(y),
            "coverage_95": coverage(y, *predicted),
        }


def mean_code(codes: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of codes, zero if all weights are zero.

    Args:
        codes: Codes `[n, units]`.
        weights: Weights `[n]`, each 0 or 1.

    Returns:
        The mean `[units]`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import mean_code
        >>> mean_code(torch.tensor([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]), torch.tensor([1.0, 1.0, 0.0]))
        tensor([2., 4.])
    """
    return weights @ codes / weights.sum().clamp_min(1)
