"""MAML: learn an initialisation from which a few gradient steps solve a new task.

Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017 (arXiv 1703.03400).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from metaforge.authoring import Aux, InnerLoopLearner, InnerLoopOptions, Key, Params, Task


class MAML(InnerLoopLearner):
    """Learns an initialisation by differentiating through the inner loop (second order).

    Departures from the paper:
    - Inner rate in classification. The authors' code divides the support loss by the number of shots and sums it over
      the classes; here it is the mean over the examples. So an inner rate of theirs corresponds to a rate here that is
      as many times larger as there are ways. The suggested rate 0.4 is the number that they use for 5 ways on Omniglot,
      which makes the step a fifth of theirs. `adapters.sgd.lr=2.0` gives theirs, for 5 ways and, where they use 0.1,
      for 20 ways.
    - Head. The authors draw the weights of the Omniglot head from N(0, 1). Here weights and biases are those of
      `nn.Linear`, uniform in ±1/√inputs. No option changes that.
    - Batch norm. The authors' code has the shift β but no scale γ; here batch norm has both. `backbone.affine=shift`
      gives theirs. As in theirs, the inner loop does not adapt these parameters.
    - Network. See the departures of the backbones `conv4` and `mlp`.
    - Training on Omniglot. The authors take 60,000 outer steps by Adam with learning rate 1e-3, on 32 tasks for 5 ways
      and 16 for 20 ways, with as many queries as shots. The suggested settings are shorter: see `train.steps`,
      `train.lr`, `train.tasks`, `train.queries` and `schedule.name=constant`. For 20 ways the authors use 5 inner steps
      in training and in evaluation; the suggested 1 and 3 are those for 5 ways. `learner.steps=5` and
      `learner.test_steps=5` give theirs.
    - Training on sinusoids. The authors take 70,000 outer steps and evaluate after up to 10 inner steps; suggested are
      10,000 and 5. `train.steps=70000` and `learner.test_steps=10` give theirs.
    - Images of Omniglot. The authors split the characters at random into 1100, 100 and 423, resize by Lanczos, and draw
      one rotation per class and task, in training and in evaluation. By default the data set `omniglot` splits by
      alphabet and resizes with a box filter, and rotated copies of a character are classes of their own, in training
      only. `dataset.split=random`, `dataset.resample=lanczos` and `dataset.rotations=task` give a split of these sizes,
      their filter and their rotations.
    - Clipping. On miniImageNet the authors limit the entries of the meta-gradient to ±10; here they have no limit by
      default. `train.clip_value=10` gives theirs.
    """

    Config = InnerLoopOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, algorithm 2"
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "multi-label": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {"steps": 5000, "tasks": 16},
        },
        "regression": {
            "learner": {"steps": 1, "test_steps": 5},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss at θ' = θ − α ∇L_S(θ), with one such update per inner step (equation 1)."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
