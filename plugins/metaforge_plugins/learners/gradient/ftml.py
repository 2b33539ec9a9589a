"""FTML: follow the meta-leader, MAML on a stream of tasks that arrive one after another.

Finn, Rajeswaran, Kakade, Levine, "Online Meta-Learning", ICML 2019 (arXiv 1902.08438).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from metaforge.authoring import Aux, InnerLoopLearner, InnerLoopOptions, Key, Params, Task

STREAM = {"order": "stream", "round": 10, "tasks": 8, "log_every": 100}


class FTML(InnerLoopLearner):
    """Learns online: in each round a task arrives, is scored, and joins the tasks that MAML's steps draw from.

    A round is what `train.order = stream` makes of the training: task t of the training split arrives with round t. It
    is scored before anything is learned from it, with the learner's present initialisation. Then `train.round` outer
    steps follow on tasks drawn uniformly from all that have arrived: the approximate minimum of the sum of their query
    losses (follow the meta-leader, algorithm 1). Every learner can be trained so; with `fine-tune`, say, it is the
    comparison that the paper calls train on everything.

    The score, the loss and the examples per class to `train.proficiency` of each round are in the metrics
    (`round_score`, `round_loss`, `round_examples`), and the report of the run has them with the regret.

    Departures from the paper:
    - Data of a task. In the paper a task's examples arrive one after another, too, and its buffer grows with them. Here
      a task has its support and query set from the beginning. How many examples it needs is measured by scoring the
      learner on the first 1, 2, … examples of each class of the support set.
    - Regret. In the paper the comparison is the best fixed initialisation in hindsight. Here it is the initialisation
      at the end of the run, which is the leader as far as the outer steps have reached it.
    - Data sets. The paper's are Rainbow MNIST, CIFAR-100 and pose prediction; here any data set is a stream.
    """

    Config = InnerLoopOptions
    reference: ClassVar[str] = "Finn, Rajeswaran, Kakade, Levine 2019, arXiv 1902.08438, algorithm 1"
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {**STREAM, "shots": 5, "queries": 5, "steps": 2000, "lr": 2e-3, "proficiency": 0.9},
        },
        "multi-label": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {**STREAM, "steps": 2000},
        },
        "regression": {
            "learner": {"steps": 1, "test_steps": 5},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {**STREAM, "tasks": 25, "steps": 5000, "proficiency": 0.5},
        },
    }

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss after the update U(θ) = θ − α ∇L_S(θ), one term of the leader's sum (equation 3)."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
