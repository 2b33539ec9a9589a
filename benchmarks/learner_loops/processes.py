"""Neural processes: networks that encode the examples of a curve, and one that decodes normal distributions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from benchmarks.learner_loops.plain import Plain, linear, mlp
from metaforge.authoring import Key, Params, Task, fold_in, normal


def cnp(values: Params, task: Task, plain: Plain) -> Tensor:
    """Conditional neural process: the mean code of the support examples, and a distribution of every target."""
    x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
    r = mlp(values, "cnp.encoder", len(plain.options.encoder), torch.cat(task.support, 1)).mean(0)
    return decoded_loss(values, "cnp", torch.cat([x, r.expand(len(x), -1)], 1), y, plain)


def np(values: Params, task: Task, plain: Plain, noise: Tensor) -> Tensor:
    """Neural process: the lower bound of the likelihood, with a sample of the latent variable and the mean code."""
    x = torch.cat([task.support.x, task.query.x])
    r = mlp(values, "np.encoder", len(plain.options.encoder), torch.cat(task.support, 1)).mean(0)
    return latent_loss(values, "np", torch.cat([x, r.expand(len(x), -1)], 1), task, noise, plain)


def anp(values: Params, task: Task, plain: Plain, noise: Tensor) -> Tensor:
    """Attentive neural process: a neural process in which every target attends to codes of the support examples."""
    x = torch.cat([task.support.x, task.query.x])
    codes = mlp(values, "anp.encoder", len(plain.options.encoder), torch.cat(task.support, 1))
    located = mlp(values, "anp.locations", 2, x)
    inputs = {"queries": located, "keys": located[: len(task.support.x)], "values": codes}
    query, key, value = (
        linear(values, f"anp.attention.{part}.0", each).view(len(each), plain.options.heads, -1).transpose(0, 1)
        for part, each in inputs.items()
    )
    attended = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
    r = linear(values, "anp.attention.output.0", attended)
    return latent_loss(values, "anp", torch.cat([x, r], 1), task, noise, plain)


def noise_of_latent(key: Key, task: Task, plain: Plain) -> Tensor:
    """Return the standard normal numbers of the sample of the latent variable."""
    return normal(fold_in(key, "latent"), (plain.options.latent,), task.query.x.dtype)


def latent_loss(values: Params, name: str, codes: Tensor, task: Task, noise: Tensor, plain: Plain) -> Tensor:
    """Return −ELBO / targets for a sample of q(z | all examples), whose prior is q(z | support set)."""
    context, y = torch.cat(task.support, 1), torch.cat([task.support.y, task.query.y])
    everything = torch.cat([context, torch.cat(task.query, 1)])
    each = mlp(values, f"{name}.latent_encoder", len(plain.options.encoder), everything)
    # The codes of an example are the same in both sets.
    posterior, prior = (latent(values, name, part.mean(0)) for part in (each, each[: len(context)]))
    z = posterior.mean + posterior.stddev * noise
    divergence = kl_divergence(posterior, prior).sum()
    loss = decoded_loss(values, name, torch.cat([codes, z.expand(len(codes), -1)], 1), y, plain)
    return divergence / y.numel() + loss


def latent(values: Params, name: str, code: Tensor) -> Normal:
    """Return the distribution of the latent variable, from a mean code."""
    mean, s = mlp(values, f"{name}.latent", 2, code).chunk(2)
    return Normal(mean, 0.1 + 0.9 * s.sigmoid(), validate_args=False)


def decoded_loss(values: Params, name: str, codes: Tensor, y: Tensor, plain: Plain) -> Tensor:
    """Return the mean of −log N(y; μ, σ), where μ and σ are decoded."""
    mean, s = mlp(values, f"{name}.decoder", len(plain.options.decoder) + 1, codes).chunk(2, 1)
    return F.gaussian_nll_loss(mean, y, (0.1 + 0.9 * F.softplus(s)).square(), full=True)
