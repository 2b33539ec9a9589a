"""LEO: adapt in a low-dimensional latent space from which the classifier's weights are decoded.

Rusu, Rao, Sygnowski, Vinyals, Pascanu, Osindero, Hadsell, "Meta-Learning with Latent Embedding Optimization", ICLR 2019
(arXiv 1807.05960). The docstring of the class lists the departures from it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring import (
    Aux,
    BatchNormPolicy,
    Examples,
    Key,
    ModelLearner,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    cross_entropy,
    fold_in,
    normal,
    one_hot,
    score,
    sum_of,
    uniform,
)

MATRICES = ("leo.encoder", "leo.relation.0", "leo.relation.1", "leo.relation.2", "leo.decoder")
# Upper bound on the log of a standard deviation: for codes, relative to `code_std`; for weights, before the offset is
# added. Without it the exponential overflows early in training, when backbone and codes are trained jointly.
LARGEST = 1.0


class LEOOptions(Options):
    """Options of latent embedding optimisation."""

    steps: int = Field(5, ge=0, le=1000, description="gradient steps on the latent codes")
    finetune: int = Field(5, ge=0, le=1000, description="gradient steps on the decoded weights, afterwards")
    latent: int = Field(64, ge=1, le=4096, description="size of the latent code of a class")
    code_std: float = Field(0.03, gt=0.0, description="initial standard deviation of a code's noise; 1.0 in the paper")
    latent_rate: float = Field(0.05, ge=0.0, description="initial rate of each latent dimension; 1.0 in the paper")
    weight_rate: float = Field(1e-3, ge=0.0, description="initial rate of each weight dimension; as in the paper")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout rate of the encoder's input in training")
    kl: float = Field(1e-3, ge=0.0, description="weight β of the KL divergence of the codes from a standard normal")
    encoder_penalty: float = Field(
        1e-5, ge=0.0, description="weight γ of the squared distance from code to adapted code"
    )
    l2: float = Field(1e-8, ge=0.0, description="weight of the squared weights of encoder, relation net and decoder")
    orthogonality: float = Field(1e-3, ge=0.0, description="weight of the correlation among the decoder's latent rows")
    scale: float = Field(8.0, gt=0.0, description="norm to which the features of each image are scaled")
    train_backbone: bool = Field(True, description="train the backbone jointly; the paper keeps it fixed")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class LEO(ModelLearner):
    """Encodes the support set as one code per class, adapts the codes by gradients, and decodes a linear classifier.

    Departures from the paper:
    - Features. The paper uses fixed features of a wide residual network that was trained beforehand, scaled to norm 1.
      Here the backbone is trained jointly, and features are scaled to norm 8, so results are not comparable with the
      paper's. `metaforge features` with the data set `stored-features`, and `learner.scale=1`, give the paper's way.
    - Initial rates and noise. In the paper the latent rates start at 1, and the network gives log σ of the codes; here
      the rates start at 0.05, and σ is multiplied by 0.03. `learner.latent_rate=1` and `learner.code_std=1` give the
      paper's. The authors' code subtracts 1 from σ, which then starts near 0; no option gives that.
    - Bounds. Here log σ is at most 1, before it is scaled or shifted; in the paper it has no bound. No option changes
      that.
    - Codes. The authors' code draws one code per support example and averages the weights decoded from those of a
      class; here, as in the paper, a class has one code. So that a step is as large as theirs, the support loss is
      summed over classes and averaged over shots.
    - Dropout. The authors' code drops entries of the features both before the encoder and before the classifier, in the
      support and the query loss, at a rate from 0.30 to 0.48 that depends on the data set. Here `learner.dropout`, by
      default 0, acts before the encoder only; no option drops entries before the classifier.
    - KL divergence. The authors' code estimates it from the drawn codes; here it is computed exactly. As in their code
      it is averaged over classes and dimensions, and so is the penalty of the encoder, which the paper writes as a sum.
    - L2 penalty. In the authors' code it is λ/2 times the squared weights, by the regulariser of TensorFlow; here
      `learner.l2` has no factor ½. Half of a value of theirs gives the same penalty.
    - Weights of the terms. The authors have others for each data set and number of shots, for miniImageNet and 1 shot
      KL 0.7561, encoder penalty 5.757e-6, L2 3.62e-10 and orthogonality 0.188103. The defaults here are not among
      theirs. `learner.kl`, `learner.encoder_penalty`, `learner.l2` and `learner.orthogonality` set them.
    - Clipping. The authors limit the entries of the meta-gradient to ±0.1 and then the norm of each variable's gradient
      to 0.1. Suggested is a limit of 0.1 on the norm over all parameters. `train.clip_value=0.1` limits entries, after
      that; a limit for each variable is not available.
    - Training. The authors take 100,000 outer steps on 12 tasks of 5 ways with 15 queries per class, with early
      stopping. Suggested are 1,500 steps on one task of 20 ways with 5 queries per class, without it. `train.steps`,
      `train.tasks`, `train.ways`, `train.queries` and the hook `early-stop` give theirs.
    """

    Config = LEOOptions
    reference: ClassVar[str] = "Rusu et al. 2019, arXiv 1807.05960, algorithm 1"
    tags: Tags = Tags(needs=frozenset({"backbone"}), adapts=True, fixed_ways=False, stochastic=True, varied_shots=True)
    config: LEOOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 20, "queries": 5, "tasks": 1, "steps": 1500, "lr": 1e-3, "clip": 0.1},
            "schedule": {"name": "cosine"},
            "backbone": {"variant": "pool"},
        }
    }

    def __init__(self, config: LEOOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        self.ways, self.steps, self.features = parts.spec.outputs, config.steps, self.model.features

    def init(self, key: Key) -> Params:
        """Return the backbone's values, the matrices `[inputs, outputs]` of the networks, and the learned rates."""
        latent, features = self.config.latent, self.features
        shapes = ((features, latent), *((2 * latent, 2 * latent),) * 3, (latent, 2 * features))
        matrices = {n: glorot(fold_in(key, n), shape) for n, shape in zip(MATRICES, shapes, strict=True)}
        rates = {
            "leo.latent_rate": torch.full((latent,), self.config.latent_rate),
            "leo.weight_rate": torch.full((features,), self.config.weight_rate),
        }
        return super().init(key) | matrices | rates

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the class weights `[ways, features]` after `steps` latent steps; for 0 steps, those first decoded."""
        at = Pass(key, 0, "support")
        features = self.embed(values, support.x, at)
        mean, log_std = self.encode(values, features, support.y, key)
        weights, _ = self.descend(values, sample(mean, log_std.exp(), key), Examples(features, support.y), steps, key)
        return {"weights": weights} | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits w·x `[n, ways]`."""
        return self.embed(values | fast, x, Pass(key, 0, "query")) @ fast["weights"].T

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return L_Q + β KL(q(z) ‖ N(0, I)) + γ ‖sg(z') − z‖² + R (equations 6 and 7)."""
        support, query, state = self.model.observe_task(values, task, key)
        support, query = self.scaled(support), self.scaled(query)
        mean, log_std = self.encode(values, support, task.support.y, key)
        codes = sample(mean, log_std.exp(), key)
        weights, adapted = self.descend(values, codes, Examples(support, task.support.y), None, key)
        logits = query @ weights.T
        terms = (
            cross_entropy(logits, task.query.y),
            self.config.kl * divergence(mean, log_std),
            self.config.encoder_penalty * (adapted.detach() - codes).square().mean(),
            self.config.l2 * sum_of(values[name].square().sum() for name in MATRICES),
            self.config.orthogonality * correlation(values["leo.decoder"]),
        )
        return sum_of(terms), Aux({"score": score("classification", logits, task.query.y).detach()}, state)

    def embed(self, values: Params, x: Tensor, at: Pass) -> Tensor:
        """Return the backbone's features `[n, features]`, each row scaled to the norm `scale`."""
        return self.scaled(self.model(values, x, at).flatten(1))

    def scaled(self, features: Tensor) -> Tensor:
        """Return `features` `[n, features]`, each row scaled to the norm `scale`; detached if the backbone is fixed."""
        if not self.config.train_backbone:
            features = features.detach()
        return self.config.scale * F.normalize(features, dim=-1)

    def encode(self, values: Params, features: Tensor, y: Tensor, key: Key | None) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation `[ways, latent]` of the code of each class (equations 4 and 5).

        The input of the relation network is every ordered pair of support examples, including pairs of an example with
        itself.
        """
        codes = dropout(features, self.config.dropout, key) @ values["leo.encoder"]
        left, right = (codes @ half for half in values["leo.relation.0"].chunk(2))
        hidden = (left.unsqueeze(1) + right.unsqueeze(0)).relu() @ values["leo.relation.1"]
        related = (hidden.relu() @ values["leo.relation.2"]).mean(1)
        members = one_hot(y, self.ways, features.dtype)
        mean, log_std = (members.T @ related / members.sum(0).unsqueeze(-1)).chunk(2, -1)
        return mean, log_std.clamp_max(LARGEST) + math.log(self.config.code_std)

    def decode(self, values: Params, codes: Tensor, key: Key | None) -> Tensor:
        """Return class weights `[ways, features]`: w ~ N(μ, σ²) with (μ, σ) linear in z; in evaluation w = μ.

        As in the authors' code, σ is shifted so that it starts at √(2 / (features + ways)).
        """
        mean, log_std = (codes @ values["leo.decoder"]).chunk(2, -1)
        offset = (2.0 / (self.features + self.ways)) ** 0.5
        return sample(mean, (log_std.clamp_max(LARGEST).exp() - (1.0 - offset)).clamp_min(1e-10), key)

    def descend(
        self, values: Params, codes: Tensor, support: Examples, steps: int | None, key: Key | None
    ) -> tuple[Tensor, Tensor]:
        """Return the adapted class weights and codes: z ← z − a ∘ ∇_z L_S, then w ← w − b ∘ ∇_w L_S.

        L_S is the mean over the support set times the number of classes, so that the learned rates suit any number of
        ways. With equally many shots of each class, it is summed over classes and averaged over shots.
        """

        def support_loss(weights: Tensor) -> Tensor:
            return self.ways * cross_entropy(support.x @ weights.T, support.y)

        def decoded(z: Tensor, step: int) -> Tensor:
            return self.decode(values, z, None if key is None else fold_in(fold_in(key, "decode"), step))

        latent_steps = self.config.steps if steps is None else steps
        for step in range(latent_steps):
            codes = codes - values["leo.latent_rate"] * grad(lambda z, s=step: support_loss(decoded(z, s)))(codes)
        weights = decoded(codes, latent_steps)
        for _ in range(0 if steps == 0 else self.config.finetune):
            weights = weights - values["leo.weight_rate"] * grad(support_loss)(weights)
        return weights, codes


def sample(mean: Tensor, std: Tensor, key: Key | None) -> Tensor:
    """Return mean + std · ε, where ε ~ N(0, I) is drawn from the key; in evaluation the mean."""
    return mean if key is None else mean + std * normal(fold_in(key, "sample"), mean.shape, mean.dtype)


def dropout(x: Tensor, rate: float, key: Key | None) -> Tensor:
    """Return `x` with entries zeroed with probability `rate` and the others scaled up; in evaluation `x`."""
    if key is None or rate == 0.0:
        return x
    return x * (uniform(fold_in(key, "dropout"), x.shape, x.dtype) >= rate) / (1.0 - rate)


def divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)), averaged over classes and dimensions."""
    return 0.5 * (mean.square() + (2.0 * log_std).exp() - 1.0 - 2.0 * log_std).mean()


def correlation(matrix: Tensor) -> Tensor:
    """Return the mean squared difference between the correlations of a matrix's rows and the identity."""
    rows = F.normalize(matrix, dim=-1)
    excess: Tensor = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return excess.square().mean()


def glorot(key: Key, shape: tuple[int, int]) -> Tensor:
    """Return a matrix drawn uniformly from ±√(6 / (inputs + outputs))."""
    return (2.0 * uniform(key, shape) - 1.0) * math.sqrt(6.0 / sum(shape))
